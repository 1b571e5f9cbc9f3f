"""From the words behind `data generate` to a checked `DatasetRecipe`. All problems are raised together. No torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmforge.config.given import Given, Problem, refuse
from llmforge.config.keys import Key
from llmforge.config.paths import find_input
from llmforge.config.sources import read_sources
from llmforge.config.values import check, convert, optional
from llmforge.config.yaml_text import shown
from llmforge.datagen.keys import GROUPS, DatasetRecipe
from llmforge.errors import nearest

NAME = re.compile(r"[\w.-]+")
VARIABLE = re.compile(r"\$\{(\w+)\}")
REFERENCE = re.compile(r"\$\{[^}]*\}")


def load_dataset_recipe(words: Sequence[str], command: str = "generate") -> DatasetRecipe:
    """Read and check a recipe of `kind: dataset`.

    Args:
        words: recipe files, then `key=value`; keys of a group are written `teacher.model=...`.
        command: which step asks; only "generate" needs the keys of a mode.

    Raises:
        RecipeError: everything that is wrong with the keys, with file and line.
    """
    sources = read_sources(words, groups=tuple(GROUPS))
    problems = list(sources.problems)
    given: dict[str, Given] = {}
    for layer in sources.layers:
        for item in layer.given:
            if item.key in GROUPS:
                problems.append(
                    Problem(item.origin, f"{item.key}: got {shown(item.value)}, expected a mapping of keys")
                )
            else:
                given[item.key] = item
    values, found = _values(given)
    problems += found or _absent(values, given, command)
    if problems:
        raise refuse(sources.files, problems)
    own = {name: value for name, value in values.items() if "." not in name}
    groups = {name: cls(**_of_group(name, values)) for name, cls in GROUPS.items()}
    origins = {name: item.origin for name, item in given.items()}
    return DatasetRecipe(**own, **groups, origins=origins, files=tuple(sources.files))


@functools.cache
def dataset_keys() -> Mapping[str, Key]:
    """Every key of a dataset recipe by its name, "teacher.model" for one of a group."""
    found: dict[str, Key] = {}
    for group, cls in (("", DatasetRecipe), *GROUPS.items()):
        types = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if "rule" not in item.metadata:
                continue
            name = f"{group}.{item.name}" if group else item.name
            name = name.removesuffix("_")  # `from` is a word of Python, so its field is called from_
            default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
            found[name] = Key(name, group, item.name, types[item.name], default, item.metadata["rule"])
    return found


def expand_url(url: str) -> str | None:
    """A teacher's URL with its environment variables filled in; None where one is not set."""
    names = VARIABLE.findall(url)
    if any(not os.environ.get(name) for name in names):
        return None
    return VARIABLE.sub(lambda match: os.environ[match[1]], url)


def _of_group(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {dataset_keys()[name].field: value for name, value in values.items() if name.startswith(f"{group}.")}


def _values(given: Mapping[str, Given]) -> tuple[dict[str, Any], list[Problem]]:
    """The given values in their types, inputs as the paths where they are."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, item in given.items():
        key = dataset_keys().get(name)
        if key is None:
            problems.append(Problem(item.origin, f"{name}: no such key.{nearest(name, dataset_keys())}"))
            continue
        if item.value is None and not optional(key.type):
            continue
        if name != "teacher.base_url" and REFERENCE.search(str(item.value)) and name != "teacher.fallback":
            problems.append(Problem(item.origin, f"{name}: ${{...}} is filled in for base_url only"))
            continue
        try:
            value = convert(item.value, key.type, item.text)
        except ValueError as error:
            problems.append(Problem(item.origin, f"{name}: got {shown(item.value)}, expected {error}"))
            continue
        if message := check(value, key.rule, key.type, key.choices, item.value):
            problems.append(Problem(item.origin, f"{name}: {message}"))
            continue
        if key.rule.path == "input" and value is not None:
            paths = [find_input(each, item.origin) for each in (value if isinstance(value, list) else [value])]
            if None in paths:
                lost = value[paths.index(None)] if isinstance(value, list) else value
                problems.append(Problem(item.origin, f"{name}: no file {lost!r}{_looked(item)}{_near(lost, item)}"))
                continue
            value = paths if isinstance(value, list) else paths[0]
        values[name] = value
    return values, problems


def _looked(item: Given) -> str:
    return " beside the recipe or in the working directory" if item.origin.file else " in the working directory"


def _near(name: str, item: Given) -> str:
    folders = [Path(name).parent, *([Path(item.origin.file).parent / Path(name).parent] if item.origin.file else [])]
    names = [entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return f".{nearest(Path(name).name, names)}" if nearest(Path(name).name, names) else ""


def _absent(values: Mapping[str, Any], given: Mapping[str, Given], command: str) -> list[Problem]:
    """Keys that must be there, and pairs that cannot be."""
    problems = []
    making = command == "generate"
    if making and "kind" not in given:
        problems.append(Problem(None, "kind: missing; a recipe that makes data says `kind: dataset`"))
    if making and not values.get("name"):
        problems.append(Problem(None, "name: missing; it names the work folder and the data set"))
    elif values.get("name") and not NAME.fullmatch(values["name"]):
        origin = given["name"].origin
        problems.append(
            Problem(origin, f"name: got {values['name']!r}, expected letters, digits, dot, dash, underscore")
        )
    if not making:
        return problems
    needed = {
        "slots": ("slots", "prompt"),
        "rules": ("slots", "row"),
        "selfinstruct": ("selfinstruct.seeds", "rows"),
        "label": ("label.rows", "label.labels"),
    }
    mode = values.get("mode", "slots")
    problems += [Problem(None, f"{key}: missing; mode {mode} needs it") for key in needed[mode] if not values.get(key)]
    if mode != "rules" and not values.get("teacher.model"):
        problems.append(
            Problem(
                None, "teacher.model: missing; name the server's model, or with no base_url a model on this machine"
            )
        )
    return problems
