"""Rows chosen out of several encoded sets, in any order and as often as wanted; nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from llmforge.data.example import Encoded, EncodedSet


class ChosenRows(EncodedSet):
    """The rows `places` of the sets `numbers`, behind the methods of one set.

    Attributes:
        parts: the sets, usually memory-mapped.
        numbers: (rows,) int32, which set a row is in.
        places: (rows,) int64, where in it.
        examples: (rows,) int64, as the one who chose them says.
    """

    def __init__(self, parts: Sequence[EncodedSet], numbers: np.ndarray, places: np.ndarray, examples: np.ndarray):
        self.parts, self.numbers, self.places, self.examples = list(parts), numbers, places, examples

    @cached_property
    def lengths(self) -> np.ndarray:
        found = np.zeros(len(self.places), np.int64)
        for number, part in enumerate(self.parts):
            mine = self.numbers == number
            found[mine] = part.lengths[self.places[mine]]
        return found

    @cached_property
    def learned(self) -> np.ndarray:
        found = np.zeros(len(self.places), np.int64)
        for number, part in enumerate(self.parts):
            mine = self.numbers == number
            found[mine] = part.learned[self.places[mine]]
        return found

    @property
    def offsets(self) -> np.ndarray:  # type: ignore[override]  # made when asked, never set
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    @property
    def input_ids(self) -> np.ndarray:  # type: ignore[override]  # made when asked, never set
        """A copy of all rows' ids, one after the other."""
        return np.concatenate([np.zeros(0, np.int32), *(self.ids_of(row) for row in range(len(self)))])

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]  # made when asked, never set
        """A copy of all rows' labels."""
        rows = (np.array(row.labels, np.int32) for row in self)
        return np.concatenate([np.zeros(0, np.int32), *rows])

    def ids_of(self, row: int) -> np.ndarray:
        return self.parts[self.numbers[row]].ids_of(int(self.places[row]))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row: Encoded = self.parts[self.numbers[index]][int(self.places[index])]
        return row


def rows_of(examples: np.ndarray, encoded: EncodedSet) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the given examples of a set, in the examples' order.

    An example has several rows where it was split, and none where it was rejected.

    Returns:
        Places of the rows in `encoded`, and for each row which of the given examples it belongs to.
    """
    first, last = (np.searchsorted(encoded.examples, examples, side=side) for side in ("left", "right"))
    counts = last - first
    owners = np.repeat(np.arange(len(examples)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[owners] + within, owners
