"""`option`: how one key of a recipe is declared; loader, --help, JSON Schema, docs and board read the declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

PathKind = Literal["input", "output"]


@dataclass(frozen=True)
class Rule:
    """What a key allows besides its type; `dataclasses.field(metadata={"rule": Rule(...)})` carries it."""

    help: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: Sequence[Any] | str | None = None  # a str names a Registry of config/names.py, whose names are the choices
    path: PathKind | None = None  # "input": must exist, looked up beside the recipe, then in the working directory
    modes: frozenset[str] = frozenset()  # commands that use the key; empty: all
    stages: frozenset[str] = frozenset()  # training stages that use it; empty: all
    secret: bool = False  # never shown, never written


def option(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Sequence[Any] | str | None = None,
    path: PathKind | None = None,
    modes: Sequence[str] = (),
    stages: Sequence[str] = (),
    secret: bool = False,
) -> Any:
    """A dataclass field with its default, meaning and range; a mutable default is copied for each instance."""
    rule = Rule(help, above, at_least, below, at_most, choices, path, frozenset(modes), frozenset(stages), secret)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"rule": rule})
    return dataclasses.field(default=default, repr=not secret, metadata={"rule": rule})
