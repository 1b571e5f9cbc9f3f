"""How many rows each value of a field has, and which have too few."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Coverage:
    """Rows per value.

    Attributes:
        counts: value -> rows, the fewest first; expected values without a row are there with 0.
        minimum: rows each value should have.
        missing: rows that do not have the field.
        unexpected: values with rows that were not expected; empty when nothing was said to be expected.
    """

    field: str
    counts: dict[str, int]
    minimum: int
    rows: int
    missing: int
    unexpected: list[str]

    @property
    def gaps(self) -> dict[str, int]:
        """Value -> rows that it lacks."""
        return {value: self.minimum - count for value, count in self.counts.items() if count < self.minimum}

    @property
    def enough(self) -> bool:
        return not self.gaps and bool(self.counts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "field": self.field,
            "rows": self.rows,
            "minimum": self.minimum,
            "counts": self.counts,
            "gaps": self.gaps,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "enough": self.enough,
        }


def coverage(rows: Iterable[Mapping[str, Any]], field: str, minimum: int, expected: Sequence[str] = ()) -> Coverage:
    """Count the values at the path `field`, such as `output.label`; JSON text on it is read, lists are gone through."""
    counts: Counter[str] = Counter(dict.fromkeys(expected, 0))
    total = missing = 0
    for row in rows:
        total += 1
        values = values_at(row, field.split("."))
        missing += not values
        counts.update(set(values))
    fewest = dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))
    unexpected = [value for value in fewest if expected and value not in set(expected)]
    return Coverage(field, fewest, minimum, total, missing, unexpected)


def values_at(value: Any, path: Sequence[str]) -> list[str]:
    """The texts at a path; [] where it leads nowhere."""
    if isinstance(value, str) and path:
        try:
            value = json.loads(value)
        except ValueError:
            return []
    if isinstance(value, list):
        return [text for item in value for text in values_at(item, path)]
    if path:
        return values_at(value.get(path[0]), path[1:]) if isinstance(value, Mapping) else []
    if value is None:
        return []
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
