"""YAML (and JSON, which is a part of it) read with the line of every key, and without running anything.

PyYAML's composer gives nodes with their places; values are built here from the nodes. Numbers follow YAML 1.2, as
OmegaConf reads them: `1e-4` is a number, `1:30`, `010` and dates are not turned into something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from llmforge.config.given import Given, Problem, at_line
from llmforge.config.schema import Origin

MAX_NODES = 100_000  # anchors may repeat each other; a recipe has some hundred nodes
MAX_BYTES = 4 << 20

NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
RESOLVERS = (
    (NULL, r"~|null|Null|NULL|", "~nN\0"),
    (BOOL, r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    (INT, r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        FLOAT,
        r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar rules above; only its composer is used."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012  PyYAML's own way to hold them


for _tag, _pattern, _first in RESOLVERS:
    RecipeLoader.add_implicit_resolver(
        _tag, re.compile(rf"^(?:{_pattern})$"), list(_first.replace("\0", "")) + [""] * (_tag == NULL)
    )
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


class YamlProblem(Exception):
    """The text is not a recipe; `line` counts from 1."""

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line, self.message = line, message


def read_text(path: Path) -> str:
    """A recipe file's text without a byte order mark.

    Raises:
        YamlProblem: not UTF-8, too large, or with control characters; with the line.
    """
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise YamlProblem(1, f"{len(data):,} bytes are no recipe; at most {MAX_BYTES:,} are read")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise YamlProblem(1, "the file is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise YamlProblem(line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def parse_recipe(text: str, file: str, groups: Sequence[str] = ()) -> tuple[list[Given], list[Problem]]:
    """The keys of a recipe in their order, those of nested `groups` as "group.key", and what is wrong with the text.

    With "group.*" among the groups its members are groups too: "group.member" (null) and then "group.member.key".

    Raises:
        YamlProblem: the text is no YAML mapping at all.
    """
    builder = _Builder()
    root = _compose(text)
    if root is None:
        raise YamlProblem(1, "the recipe is empty")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {shown(builder.build(root))}"
        raise YamlProblem(_line(root), f"a recipe is a mapping of `key: value` lines, this is {kind}")
    given: dict[str, Given] = {}
    problems: list[Problem] = []
    for key_node, value_node in builder.pairs(root):
        origin = at_line(file, _line(key_node))
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None:
            problems.append(Problem(origin, "a key must be a word"))
            continue
        if key in given:
            problems.append(Problem(origin, f"{key}: given twice, first in line {given[key].origin.line}"))
            continue
        if key in groups and isinstance(value_node, yaml.MappingNode):
            inner = [(key_node, value, f"{key}.{key_node.value}") for key_node, value in builder.pairs(value_node)]
            if f"{key}.*" in groups:  # its members are groups too
                inner = [part for member in inner for part in _members(builder, *member)]
            for inner_key, inner_value, name in inner:
                if name in given:
                    message = f"{name}: given twice, first in line {given[name].origin.line}"
                    problems.append(Problem(at_line(file, _line(inner_key)), message))
                    continue
                given[name] = builder.given(name, inner_value, at_line(file, _line(inner_key)))
            continue
        given[key] = builder.given(key, value_node, origin)
    return list(given.values()), problems + [Problem(at_line(file, line), m) for line, m in builder.duplicates]


def _members(
    builder: _Builder, key: yaml.Node, value: yaml.Node, name: str
) -> Iterator[tuple[yaml.Node, yaml.Node, str]]:
    """A member of a group and then its keys, each with its name and line."""
    if not isinstance(value, yaml.MappingNode):
        yield key, value, name
        return
    yield key, yaml.ScalarNode(NULL, ""), name
    for inner_key, inner_value in builder.pairs(value):
        yield inner_key, inner_value, f"{name}.{inner_key.value}"


def parse_value(text: str) -> Any:
    """The value of `key=text` on the command line; what is not YAML is plain text."""
    try:
        node = _compose(text)
        return None if node is None else _Builder().build(node)
    except YamlProblem:
        return text


def shown(value: Any, limit: int = 60) -> str:
    """A value as an error shows it: on one line and short."""
    text = {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _compose(text: str) -> yaml.Node | None:
    if text.lstrip().startswith("{"):  # JSON, where tabs are blanks
        text = text.replace("\t", " ")
    try:
        return yaml.compose(text, Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and mark.line < len(rows := text.split("\n")) and re.match(r" *\t", rows[mark.line]):
            raise YamlProblem(mark.line + 1, "a tab indents this line; YAML wants blanks") from None
        if isinstance(error, yaml.composer.ComposerError) and error.problem and "another document" in error.problem:
            raise YamlProblem(mark.line + 1 if mark else 1, "`---` begins a second document; a recipe is one") from None
        what = " ".join(part for part in (error.problem, error.context) if part)
        raise YamlProblem(mark.line + 1 if mark else 1, f"broken YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(line, f"the character U+{int(error.character):04X} may not stand in YAML") from None
    except RecursionError:
        raise YamlProblem(1, "nested too deeply for a recipe") from None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


class _Builder:
    """Values from nodes. Counts the nodes it visits, so that anchors cannot blow a small file up."""

    def __init__(self) -> None:
        self.visited = 0
        self.open: set[int] = set()
        self.duplicates: list[tuple[int, str]] = []

    def pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes; what `<<` brings in comes after the keys written here and yields to them."""
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        own: set[str] = set()
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(source, yaml.MappingNode):
                        raise YamlProblem(_line(key), "`<<` takes a mapping or a list of mappings")
                    self._visit(source)
                    merged.extend(self.pairs(source))
            else:
                own.add(key.value if isinstance(key, yaml.ScalarNode) else "")
                yield key, value
        for key, value in merged:
            if isinstance(key, yaml.ScalarNode) and key.value not in own:
                own.add(key.value)
                yield key, value

    def given(self, key: str, node: yaml.Node, origin: Origin) -> Given:
        return Given(key, self.build(node), origin, node.value if isinstance(node, yaml.ScalarNode) else None)

    def build(self, node: yaml.Node) -> Any:
        self._visit(node)
        if id(node) in self.open:
            raise YamlProblem(_line(node), "this value contains itself")
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(node)
            except ValueError:
                raise YamlProblem(_line(node), f"{shown(node.value)} is not what its tag {node.tag} says") from None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self.build(item) for item in node.value]
            return self._mapping(node)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.Node) -> dict:
        if not isinstance(node, yaml.MappingNode) or node.tag != "tag:yaml.org,2002:map":
            raise YamlProblem(_line(node), f"the tag {node.tag} is not allowed in a recipe")
        built: dict[Any, Any] = {}
        for key, value in self.pairs(node):
            name = _scalar(key) if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                raise YamlProblem(_line(key), "a key must be a word")
            if name in built:
                self.duplicates.append((_line(key), f"{name}: given twice in one mapping"))
                continue
            built[name] = self.build(value)
        return built

    def _visit(self, node: yaml.Node) -> None:
        self.visited += 1
        if self.visited > MAX_NODES:
            raise YamlProblem(_line(node), f"anchors repeat more than {MAX_NODES:,} values; this is no recipe")


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    match node.tag:
        case "tag:yaml.org,2002:str":
            # JSON writes a character beyond U+FFFF as two escapes, which YAML does not join.
            joined = re.search("[\ud800-\udfff]", text)
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if joined else text
        case t if t == NULL:
            return None
        case t if t == BOOL:
            return text.lower() in ("yes", "true", "on")
        case t if t == INT:
            digits = text.replace("_", "")
            if len(digits) > 400:
                raise YamlProblem(_line(node), f"a number of {len(digits)} digits")
            return int(digits, 16 if "x" in digits else 10)
        case t if t == FLOAT:
            return float(
                text.replace("_", "")
                .replace(".inf", "inf")
                .replace(".Inf", "inf")
                .replace(".INF", "inf")
                .replace(".nan", "nan")
                .replace(".NaN", "nan")
                .replace(".NAN", "nan")
            )
    raise YamlProblem(_line(node), f"the tag {node.tag} is not allowed in a recipe")
