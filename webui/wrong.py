"""One thing that is wrong with a recipe, told at its key, with the recipe that would be without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Fixed = TypeVar("Fixed")  # what the page edits: a form's values, or a text


@dataclass(frozen=True)
class Wrong(Generic[Fixed]):
    """One problem: the key it is at ("" when there is none), what is wrong, and the recipe that would be without it."""

    key: str
    message: str
    fixed: Fixed | None = None
    fix: str = ""  # rename, value or remove
    to: str = ""
