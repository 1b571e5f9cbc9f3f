"""The words behind a command: recipe files, a run folder, `-` for standard input, then `key=value` and `--key value`.

What comes out is a list of layers, the later winning over the earlier: each file after the files it `extends`, the
overrides last.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.config.given import COMMAND_LINE, Given, Problem, at_line
from llmforge.config.keys import NESTED, keys
from llmforge.config.yaml_text import YamlProblem, parse_recipe, parse_value, read_text
from llmforge.errors import RecipeError

KEY = re.compile(r"[A-Za-z_][\w.-]*")
OVERRIDE = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)


@dataclass
class Layer:
    """The keys of one file, or of the command line (`file` None), and the folder its paths start from."""

    file: str | None
    folder: Path
    given: list[Given]


@dataclass
class Sources:
    """Everything the words said, before any key is looked at."""

    layers: list[Layer] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    run_dir: str | None = None
    folders: list[str] = field(default_factory=list)  # folders that hold weights but no recipe
    groups: Sequence[str] = NESTED  # keys whose mappings hold keys of their own

    @property
    def files(self) -> list[str]:
        return [layer.file for layer in self.layers if layer.file]


def read_sources(words: Sequence[str], flags: frozenset[str] = frozenset(), groups: Sequence[str] = NESTED) -> Sources:
    """Read the words behind a command.

    Args:
        words: recipe files, a run folder or `-`, then `key=value`, `--key value`, `--key=value` or `--flag`.
        flags: keys of type bool, which may stand without a value.
        groups: keys whose mappings hold keys of their own, each with its line.

    Raises:
        RecipeError: a word that is none of these.
    """
    sources = Sources(groups=groups)
    overrides: list[Given] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            overrides.append(_option(word, rest, flags))
        elif word == "-":
            _add_text(sources, sys.stdin.read(), "standard input", Path(), ())
        elif match := OVERRIDE.fullmatch(word):
            overrides.append(_override(match[1], match[2]))
        elif os.path.isdir(Path(os.path.expanduser(word))):
            _add_folder(sources, Path(os.path.expanduser(word)))
        else:
            _add_file(sources, Path(os.path.expanduser(word)), (), None)
    sources.layers.append(Layer(None, Path(), list({given.key: given for given in overrides}.values())))
    return sources


def _override(key: str, text: str) -> Given:
    return Given(key.replace("-", "_"), parse_value(text), COMMAND_LINE, text)


def _option(word: str, rest: list[str], flags: frozenset[str]) -> Given:
    name, separator, text = word[2:].partition("=")
    if not KEY.fullmatch(name):
        raise RecipeError(f"{word!r} is not an option; write key=value or --key value")
    name = name.replace("-", "_")
    if separator:
        return _override(name, text)
    if name in flags and (not rest or rest[0].lower() not in ("true", "false", "yes", "no", "on", "off")):
        return _override(name, "true")
    if name not in keys() and (not rest or rest[0].startswith("--")):
        return _override(name, "true")  # an unknown flag is reported with everything else
    if not rest or rest[0].startswith("--"):
        raise RecipeError(f"{word} needs a value: {word} VALUE")
    return _override(name, rest.pop(0))


def _add_folder(sources: Sources, folder: Path) -> None:
    """A run folder stands for its recipe; so does a checkpoint inside one, with its own weights."""
    if os.path.isfile(folder / "recipe.yaml"):
        sources.run_dir = str(folder)
        _add_file(sources, folder / "recipe.yaml", (), None)
        return
    if not any(os.path.isfile(folder / name) for name in ("adapter_config.json", "manifest.json", "config.json")):
        raise RecipeError(
            f"{folder} is a folder without recipe.yaml, adapter_config.json or config.json: no run, no model"
        )
    if (folder.parent / "recipe.yaml").is_file():
        sources.run_dir = str(folder.parent)
        _add_file(sources, folder.parent / "recipe.yaml", (), None)
    sources.folders.append(str(folder))


def _add_file(sources: Sources, path: Path, parents: tuple[Path, ...], said_at: Given | None) -> None:
    name = str(path)
    try:
        if os.path.isdir(path):
            raise IsADirectoryError
        text = read_text(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reasons: dict[type, str] = {PermissionError: "may not be read", IsADirectoryError: "is a folder"}
        reason = reasons.get(type(error), "does not exist")
        if said_at is None:
            value = f". To give a key its value write {name}=VALUE" if name in keys() else ""
            raise RecipeError(f"{name}: this recipe {reason}{_beside(path)}{value}") from None
        sources.problems.append(Problem(said_at.origin, f"extends: {name} {reason}"))
        return
    except YamlProblem as problem:
        sources.problems.append(Problem(at_line(name, problem.line), problem.message))
        return
    _add_text(sources, text, name, path.parent, (*parents, path.resolve()))


def _add_text(sources: Sources, text: str, name: str, folder: Path, parents: tuple[Path, ...]) -> None:
    try:
        given, problems = parse_recipe(text, name, sources.groups)
    except YamlProblem as problem:
        sources.problems.append(Problem(at_line(name, problem.line), problem.message))
        return
    sources.problems.extend(problems)
    own = []
    for item in given:
        if item.key != "extends":
            own.append(item)
            continue
        for base in _file_names(item.value):
            if not isinstance(base, str) or "\0" in base:
                sources.problems.append(Problem(item.origin, f"extends: got {base!r}, expected a recipe file"))
                continue
            path = Path(os.path.normpath(folder / Path(os.path.expanduser(base))))
            if path.resolve() in parents:
                sources.problems.append(
                    Problem(item.origin, f"extends: {base} leads back to {name}; files extend in a circle")
                )
                continue
            _add_file(sources, path, parents, item)
    sources.layers.append(Layer(name, folder, own))


def _file_names(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _beside(path: Path) -> str:
    """Recipes with a like name in the same folder, for a mistyped file."""
    from llmforge.errors import nearest

    folder = path.parent
    names = (
        [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml", ".json")] if os.path.isdir(folder) else []
    )
    return f".{nearest(path.name, names)}".rstrip(".")
