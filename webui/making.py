"""A recipe that makes data as the page edits it: its text, the form, the files it names, and how far it is."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmforge.config.dump import RecipeDumper, nested
from llmforge.config.values import convert
from llmforge.config.yaml_text import YamlProblem, parse_recipe, parse_value
from llmforge.datagen.keys import GROUPS, DatasetRecipe
from llmforge.datagen.ledger import History
from llmforge.datagen.recipe import dataset_keys, load_dataset_recipe
from llmforge.datagen.session import counts_of
from llmforge.datagen.task import TaskMaker
from llmforge.datagen.work import Work
from llmforge.errors import ForgeError, RecipeError
from llmforge.runs import atomic_write
from llmforge.webui.board import Board
from llmforge.webui.making_lines import LINES, from_lines, to_lines
from llmforge.webui.refusal import Refusal

# The keys with a field of their own; everything else is in the text.
FIELDS = (
    "name", "rows", "teacher.model", "teacher.base_url", "teacher.key_env", "teacher.temperature",
    "teacher.max_tokens", "teacher.parallel", "teacher.budget_usd", "teacher.budget_tokens",
)  # fmt: skip
EMPTY: tuple[Any, ...] = (None, "", {}, [])
TEXTS = ("prompt", "output_schema")  # keys that name a file whose text the page edits
NEWEST = 3  # accepted rows that are shown
STARTER = """\
kind: dataset
name: {name}
rows: 20
slots:
  topic: {{choice: [a broken printer, a lost password, a late parcel, a wrong invoice]}}
  tone: {{choice: [polite, angry, brief]}}
teacher: {{model: null, temperature: 0.8, max_tokens: 300}}
prompt: prompts/{name}.j2
output_schema: schemas/{name}.json
row: {{instruction: "{{{{ out.question }}}}", output: out.answer}}
dedupe: {{field: instruction}}
convert: {{format: alpaca}}
register: data/dataset_info.json
"""
STARTER_PROMPT = """\
Write a {{ tone }} question of a customer about {{ topic }}, and the helpful answer of a support agent.
Answer as JSON: {"question": "...", "answer": "..."}
"""
STARTER_SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "minLength": 10, "maxLength": 400},
        "answer": {"type": "string", "minLength": 20, "maxLength": 800},
    },
    "required": ["question", "answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Draft:
    """A recipe open on the page; `path` is from the project folder."""

    path: str
    text: str
    prompt: str = ""
    schema: str = ""


def open_draft(board: Board, path: str) -> Draft:
    """A recipe of the project with the texts of its files.

    Raises:
        RecipeError: no such recipe, or it leads out of the project.
    """
    place = board.path(path, must_exist=True)
    text = place.read_text(encoding="utf-8")
    return Draft(path, text, *(_text_of(board, place, text, key) for key in TEXTS))


def new_draft(board: Board, name: str) -> Draft:
    """A recipe to begin with, under a name that is free; nothing is written yet.

    Raises:
        RecipeError: the name has other characters than letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise Refusal("make.bad_name", "name")
    path = f"recipes/{name}.yaml"
    if (board.root / path).exists():
        raise Refusal("make.name_taken", "name", path=path)
    schema = json.dumps(STARTER_SCHEMA, indent=2)
    return Draft(path, STARTER.format(name=name), STARTER_PROMPT, schema)


def save_draft(board: Board, draft: Draft) -> Path:
    """Write the recipe and the files it names; files outside of the project are left as they are.

    Raises:
        RecipeError: a path that leads out of the project, or a schema that is no JSON.
    """
    place = board.path(draft.path)
    values = values_of(draft.text)
    if draft.schema.strip():
        try:
            json.loads(draft.schema)
        except json.JSONDecodeError as error:
            where = {"line": error.lineno, "column": error.colno}
            raise Refusal("make.bad_schema", "output_schema", why=error.msg, **where) from None
    place.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place, draft.text)
    for key, text in zip(TEXTS, (draft.prompt, draft.schema), strict=True):
        name = values.get(key)
        if isinstance(name, str) and name and text.strip():
            file = board.path(place.parent / name)
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(file, text)
    return place


def values_of(text: str) -> dict[str, Any]:
    """The keys of a recipe's text, "teacher.model" for one of a group.

    Raises:
        RecipeError: the text is no recipe; names the line.
    """
    try:
        given, problems = parse_recipe(text, "recipe", tuple(GROUPS))
    except YamlProblem as error:
        raise RecipeError(f"line {error.line}: {error.message}") from None
    if problems:
        first = problems[0]
        raise RecipeError(f"{first.origin.text if first.origin else 'recipe'}: {first.message}")
    return {item.key: item.value for item in given}


def with_field(text: str, key: str, value: Any) -> str:
    """The text with one field of the form; an empty field, or its default, takes the key out.

    Raises:
        RecipeError: the text is no recipe; a Refusal for a line of `LINES` that says nothing.
    """
    values = {name: given for name, given in values_of(text).items() if name not in GROUPS}
    about = dataset_keys()[key]
    parsed: Any = None
    if key in LINES:
        parsed = from_lines(key, value)
    else:
        parsed = parse_value(value) if isinstance(value, str) and key != "name" else value
    with contextlib.suppress(ValueError):  # the check names what is wrong with it
        parsed = convert(parsed, about.type) if parsed not in EMPTY else None
    values.pop(key, None)
    if parsed not in EMPTY and (parsed != about.default or key == "name"):
        values[key] = parsed
    order = list(values_of(text))
    ranked = sorted(values, key=lambda name: order.index(name) if name in order else len(order))
    return to_text({name: values[name] for name in ranked})


def to_text(values: Mapping[str, Any]) -> str:
    """The recipe's text with these keys; "teacher.model" stands in its group."""
    lines: str = yaml.dump(nested(dict(values)), Dumper=RecipeDumper, allow_unicode=True, sort_keys=False, width=10**6)
    return lines


def fields_of(text: str) -> list[Any]:
    """The values of `FIELDS`, the keys' defaults where the text says nothing, then those of `LINES`."""
    try:
        values = values_of(text)
    except RecipeError:
        return [None] * len(FIELDS + LINES)
    lines = [to_lines(values.get(key)) for key in LINES]
    return [*(values.get(key, dataset_keys()[key].default) for key in FIELDS), *lines]


@dataclass
class Progress:
    """The ledger of a work folder, followed without holding it: only new lines are read."""

    path: Path
    history: History = field(default_factory=History)
    _read: int = 0

    def refresh(self) -> None:
        """Take what was written since; a file that became shorter is read anew."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._read:
            self.history, self._read = History(), 0
        if size == self._read:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for line in data[:whole].splitlines():
            try:
                self.history.take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # the run itself refuses a damaged ledger, with its line

    def counts(self, total: int) -> dict[str, Any]:
        """As `data generate` counts."""
        return counts_of(self.history, total)

    def newest(self) -> list[Mapping[str, Any]]:
        """The rows accepted last."""
        ends = [row.end for row in self.history.rows.values() if row.end and row.end["cause"] is None]
        return [end["record"] for end in ends[-NEWEST:]]


def read_recipe(board: Board, path: str) -> tuple[DatasetRecipe, int]:
    """(recipe, rows it makes) of a saved draft, everything it names read.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    recipe = load_dataset_recipe([str(board.path(path, must_exist=True))])
    if recipe.mode in ("slots", "rules"):
        return recipe, TaskMaker.of(recipe).num_rows
    return recipe, recipe.rows or 0


def folder_of(board: Board, text: str) -> Work | None:
    """Where the rows of a draft go; None while it has no name."""
    try:
        values = values_of(text)
    except ForgeError:
        return None
    name = values.get("store.dir") or (f"work/{values['name']}" if values.get("name") else None)
    try:
        return Work(board.path(str(name))) if name else None
    except RecipeError:
        return None


def _text_of(board: Board, place: Path, text: str, key: str) -> str:
    try:
        name = values_of(text).get(key)
        file = board.path(place.parent / name, must_exist=True) if isinstance(name, str) and name else None
        return file.read_text(encoding="utf-8") if file else ""
    except RecipeError:
        return ""
