"""What Forge makes of the keys that other tools and earlier releases use: renamed, noted, refused, or of a later stage.

Every key of LLaMA-Factory's text recipes and argument classes is a field of config/schema.py, a row of
config/training_arguments.py, or stands in one of the tables here, so no recipe meets "no such key" for a key that has
a meaning elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alias:
    """`new` is the key that took over; `convert` turns the old value into the new, None drops it."""

    new: str
    convert: Callable[[Any], Any] | None = None
    note: str = ""
    quiet: bool = False  # a spelling that stays allowed; no notice


RENAMED: dict[str, Alias] = {"evaluation_strategy": Alias("eval_strategy")}
VALUES: dict[str, dict[Any, Any]] = {}
NOTED: dict[str, str] = {}
REFUSED: dict[str, str] = {}
LATER: dict[str, tuple[str, ...]] = {}
