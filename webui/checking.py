"""The Check step: everything that `forge-cli recipe check` finds, each problem at its key and with a way to fix it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmforge.check import check_recipe
from llmforge.config.given import Problem
from llmforge.config.keys import flag_keys, keys
from llmforge.config.load import load_sources
from llmforge.config.schema import Recipe
from llmforge.config.sources import read_sources
from llmforge.errors import ForgeError, nearest
from llmforge.runs import atomic_write
from llmforge.webui.board import Board
from llmforge.webui.form import Given, ordered, to_yaml
from llmforge.webui.wrong import Wrong

MEANT = re.compile(r"Did you mean '([^']+)'\?")
KEY = re.compile(r"^([A-Za-z_][\w.]*)\b")
CHECK_NAME = "board-check"  # stands for the run's name, which the board gives when it starts


@dataclass
class Found:
    """What a check said of a recipe's text."""

    text: str
    problems: list[Wrong[Given]] = field(default_factory=list)
    fine: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    recipe: Recipe | None = None

    @property
    def runs(self) -> bool:
        return not self.problems

    def at(self, key: str) -> str:
        """The message at a key, "" when it is fine."""
        return next((wrong.message for wrong in self.problems if wrong.key == key), "")


def check_text(board: Board, given: Given) -> Found:
    """Check a recipe as the run would read it, without torch."""
    text = to_yaml(given)
    folder = board.own / "check"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.yaml"
    atomic_write(path, text, durable=False)
    try:
        return _check(path.as_posix(), given, text)
    finally:
        path.unlink(missing_ok=True)


def _check(path: str, given: Given, text: str) -> Found:
    found = Found(text)
    try:
        sources = read_sources([path, f"output_dir=runs/{CHECK_NAME}"], flag_keys())
        recipe, problems = load_sources(sources, "train")
    except ForgeError as error:
        found.problems.append(Wrong("", str(error)))
        return found
    if recipe is not None:
        checked = check_recipe(recipe)
        found.recipe, problems = recipe, checked.problems
        remarks = [*checked.notes, *checked.remarks, *checked.not_checked]
        found.fine, found.remarks = list(checked.fine), [remark.replace(path, "recipe") for remark in remarks]
    found.problems = [_wrong(given, problem, path) for problem in _once(problems)]
    return found


def _once(problems: Sequence[Problem]) -> list[Problem]:
    return list({problem.message: problem for problem in problems}.values())


def _wrong(given: Given, problem: Problem, path: str) -> Wrong[Given]:
    """A problem with its key; the fix is the name that was meant, else the key's default."""
    message = problem.message.replace(path, "recipe")
    key = match[1] if (match := KEY.match(message)) else ""
    if key not in given:
        named = [name for name in given if re.search(rf"\b{re.escape(name)}\b", message)]
        key = named[0] if named else key if key in keys() else ""
    if key not in given:
        return Wrong(key, message)
    meant = MEANT.search(message)
    rest = {name: value for name, value in given.items() if name != key}
    if key not in keys() and (name := meant[1] if meant else _near(key)):
        return Wrong(key, message, ordered({**rest, name: given[key]}), "rename", name)
    if meant and key in keys():
        value = given[key]
        fixed = [meant[1] if repr(item) in message else item for item in value] if isinstance(value, list) else meant[1]
        return Wrong(key, message, ordered({**given, key: fixed}), "value", meant[1])
    if key in ("model_name_or_path", "dataset"):
        return Wrong(key, message)  # taking it out would only bring the next problem
    return Wrong(key, message, rest, "remove", key)


def _near(key: str) -> str:
    found = re.search(r"'(.+)'", nearest(key, keys()))
    return found[1] if found else ""
