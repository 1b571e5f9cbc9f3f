"""The table of what each data set contributes, said before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmforge.data.example import EncodedSet


@dataclass(frozen=True)
class Share:
    """What one data set contributes to an epoch: rows, their tokens, tokens that are learned, its part of all tokens.

    `available` counts the rows it has; `rows` may be fewer, or more where rows come again.
    """

    dataset: str
    rows: int
    tokens: int
    learned: int
    share: float
    available: int = 0

    def __str__(self) -> str:
        return (
            f"{self.dataset}: {self.rows} rows, {self.tokens} tokens ({self.share:.1%}), {self.learned} of them learned"
        )


def mix_table(encoded: EncodedSet, parts: Sequence[tuple[str, np.ndarray, int]]) -> list[Share]:
    """The shares of data sets in one epoch.

    Args:
        encoded: rows of all data sets.
        parts: for each data set its name, the rows an epoch takes (a row as often as it comes), and how many rows it
            has to give.
    """
    lengths, learned = encoded.lengths, encoded.learned
    total = max(sum(int(lengths[rows].sum()) for _, rows, _ in parts), 1)
    return [
        Share(
            name,
            len(rows),
            int(lengths[rows].sum()),
            int(learned[rows].sum()),
            int(lengths[rows].sum()) / total,
            available,
        )
        for name, rows, available in parts
    ]


def table_lines(shares: Sequence[Share]) -> list[str]:
    """The table as aligned text."""
    head = ("data set", "has rows", "rows", "tokens", "learned", "share")
    cells = [
        (s.dataset, f"{s.available:,}", f"{s.rows:,}", f"{s.tokens:,}", f"{s.learned:,}", f"{s.share:.1%}")
        for s in shares
    ]
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *cells)
    ]
