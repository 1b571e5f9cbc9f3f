"""What a user wrote for one key, and what is wrong with it: a value, its place, and a problem at that place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmforge.config.schema import Origin
from llmforge.errors import RecipeError

COMMAND_LINE = Origin("command line")


@dataclass(frozen=True)
class Given:
    """One key as it was given; `text` is a scalar's spelling, so that `run_name: 007` stays a name."""

    key: str
    value: Any
    origin: Origin
    text: str | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a recipe from running; `origin` is None when the recipe as a whole is at fault."""

    origin: Origin | None
    message: str


def at_line(file: str, line: int) -> Origin:
    """The origin of a value in a file; lines count from 1."""
    return Origin(f"{file} line {line}", file, line)


def refuse(files: Sequence[str], problems: Iterable[Problem]) -> RecipeError:
    """All problems as one error, in the order of the files and their lines; the command line comes last."""
    order = {file: number for number, file in enumerate(files)}
    found = sorted(
        dict.fromkeys(problems),
        key=lambda p: (order.get(p.origin.file or "", len(order)), p.origin.line or 0) if p.origin else (-1, 0),
    )
    main = files[-1] if files else next((p.origin.file for p in found if p.origin and p.origin.file), None)
    lines = [f"  {_place(p.origin, main)}{p.message}" for p in found]
    return RecipeError("\n".join([f"{main or 'the recipe'} cannot run:", *lines]))


def _place(origin: Origin | None, main: str | None) -> str:
    if origin is None:
        return ""
    if origin.line is None:
        return f"{origin.text}: "
    return f"line {origin.line}: " if origin.file == main else f"{origin.text}: "
