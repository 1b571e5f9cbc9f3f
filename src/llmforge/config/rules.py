"""What two keys may not say together, as a table: id, keys, when it is broken, the sentence, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.config.given import Problem
from llmforge.config.schema import Origin


class View:
    """All values of a recipe as attributes, keys of transformers.TrainingArguments included (None when not given)."""

    def __init__(self, values: Mapping[str, Any], given: frozenset[str], command: str):
        self._values, self.given, self.command = values, given, command

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)


@dataclass(frozen=True)
class CrossRule:
    """`broken` says when the keys disagree; `note` marks a rule that is only said, not refused."""

    id: str
    keys: tuple[str, ...]
    broken: Callable[[View], Any]
    message: str
    fix: str
    commands: tuple[str, ...] = ()
    note: bool = False


RULES: tuple[CrossRule, ...] = ()


def broken_rules(view: View, origins: Mapping[str, Origin], wrong: frozenset[str]) -> tuple[list[Problem], list[str]]:
    """Problems and notes of the rules that a recipe breaks; a rule over a key that is wrong in itself is left out."""
    problems: list[Problem] = []
    notes: list[str] = []
    for rule in RULES:
        if (rule.commands and view.command not in rule.commands) or wrong & set(rule.keys) or not rule.broken(view):
            continue
        message = f"{rule.message.format_map(_Values(view))}; {rule.fix}"
        origin = next((origins[key] for key in rule.keys if key in origins), None)
        if rule.note:
            notes.append(f"{origin.text}: {message}" if origin else message)
        else:
            problems.append(Problem(origin, message))
    return problems, notes


class _Values(dict):
    """Values of a view for `str.format_map`."""

    def __init__(self, view: View):
        super().__init__()
        self.view = view

    def __missing__(self, name: str) -> Any:
        return getattr(self.view, name)
