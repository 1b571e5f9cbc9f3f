"""chain.json: what each link was made from and what it made, so that a rerun knows what is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.chain.inputs import made_by
from llmforge.errors import RecipeError
from llmforge.runs import atomic_write

NAME = "chain.json"
SHOWN = 40  # characters of a changed value that are told


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a link: "skip", "resume" or "new"; and why, in words."""

    action: str
    reason: str = ""


@dataclass
class Record:
    """The file, read and written whole."""

    path: Path
    links: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Record:
        """The record of a chain's folder, empty when there is none.

        Raises:
            RecipeError: it is no JSON.
        """
        path = folder / NAME
        if not path.is_file():
            return cls(path)
        try:
            return cls(path, json.loads(path.read_text(encoding="utf-8"))["links"])
        except (ValueError, KeyError, TypeError):
            raise RecipeError(f"{path}: not what a chain writes; remove it to begin anew") from None

    def set(self, name: str, **changes: Any) -> None:
        """Change what is known of a link."""
        self.links[name] = {**self.links.get(name, {}), **changes}
        atomic_write(self.path, json.dumps({"links": self.links}, indent=1, ensure_ascii=False) + "\n")

    def verdict(self, name: str, folder: Path, inputs: Mapping[str, str]) -> Verdict:
        """Whether a link is done, was begun with these inputs, or has to begin."""
        known = self.links.get(name)
        if known is None:
            return Verdict("new")
        if changed := difference(known["inputs"], inputs):
            return Verdict("new", changed)
        if known["state"] != "done":
            return Verdict("resume", f"it was {known['state']}")
        if known["made"] != made_by(folder):
            return Verdict("new", f"what it made is not in {folder} any more")
        return Verdict("skip")


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The first input that differs, in words; "" when none does."""
    for name in [*now, *before]:
        if name not in before:
            return f"{name} is new"
        if name not in now:
            return f"{name} is gone"
        if before[name] != now[name]:
            both = (before[name], now[name])
            short = all(len(value) <= SHOWN for value in both)
            return f"{name} was {both[0]} and is {both[1]}" if short else f"{name} has changed"
    return ""
