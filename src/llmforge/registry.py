"""A table of names a recipe may use, each pointing at code that is imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from llmforge.errors import RecipeError, nearest
from llmforge.process import large_imports


class Registry:
    """Names -> values; a value written as "package.module:attribute" is imported on first use.

    `kind` is the word that errors use, for example "stage".
    """

    def __init__(self, kind: str, table: Mapping[str, Any]):
        self.kind = kind
        self._table: dict[str, Any] = dict(table)

    def get(self, name: str) -> Any:
        """The value behind `name`.

        Raises:
            RecipeError: no such name; the message holds the nearest and all known names.
        """
        if name not in self._table:
            raise RecipeError(
                f"{self.kind}: {name!r} is not known.{nearest(name, self)} Known: {', '.join(sorted(self))}"
            )
        value = self._table[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            with large_imports():
                value = self._table[name] = getattr(importlib.import_module(module), attribute)
        return value

    def add(self, name: str, value: Any) -> None:
        """Register a plugin's value; an existing name is refused, so that two plugins never fight in silence."""
        if name in self._table:
            raise RecipeError(f"{self.kind}: {name!r} is registered twice")
        self._table[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)
