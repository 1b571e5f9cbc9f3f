"""Keys of transformers.TrainingArguments that Forge hands on, as a table, because importing the class imports torch."""

from __future__ import annotations

from typing import Any

HINTS: dict[str, Any] = {
    "bool": bool | None,
    "int": int | None,
    "float": float | None,
    "str": str | None,
    "list": list[str] | None,
    "dict": dict | None,
    "dict or str": dict | str | None,
    "bool or str": bool | str | None,
}

HANDED_ON: dict[str, tuple[str, str]] = {}


def hint_of(name: str) -> Any:
    """The type of a handed-on key."""
    return HINTS[HANDED_ON[name][0]]
