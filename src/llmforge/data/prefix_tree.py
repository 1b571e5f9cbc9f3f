"""Rows of tokens -> one flat row in which shared prefixes stand once.

The prefix tree of the rows is laid out depth first. A segment is an unbroken run of tokens that the same set of rows
owns; it hangs under the segment before it on its rows' path. A token sees its own segment up to itself and all
segments above it, which is exactly what it saw in its own row, so loss and gradient are those of the plain rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Below this many shared tokens a segment of its own costs more in attention calls than it saves in matrix products.
MIN_SHARED = 16
CLOSE = -1


@dataclass
class Forest:
    """The depth-first layout of some rows.

    Attributes:
        tokens: (T,) ids.
        positions: (T,) place of each token in its rows.
        segments: (S, 3) start, end, end of the subtree; depth-first, so a parent stands before its children.
        paths: per row, (length,) flat index of each of its tokens.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    paths: list[np.ndarray]


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal tokens at the start of two rows."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def sort_rows(rows: Sequence[np.ndarray]) -> list[int]:
    """Row numbers in the order of their ids, so that rows with a common prefix stand together."""
    # Big-endian bytes of non-negative ids compare as the ids do, and bytes compare in C.
    keys = [np.ascontiguousarray(row, dtype=">i4").tobytes() for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)


def build_forest(rows: Sequence[np.ndarray], min_shared: int = MIN_SHARED) -> Forest:
    """Lay rows out as a forest of prefixes; with `min_shared` above every row's length it is plain packing."""
    order = sort_rows(rows)
    ordered = [rows[i] for i in order]
    # shared[i]: equal tokens of neighbours i - 1 and i; the minimum over a range is what the whole range shares.
    shared = [0] + [shared_length(ordered[i - 1], ordered[i]) for i in range(1, len(ordered))]
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[list[int]] = []
    pieces: list[list[np.ndarray]] = [[] for _ in rows]
    size = 0

    # A stack instead of recursion, so that depth has no limit. (first, last, depth) lays out ordered[first:last], whose
    # first `depth` tokens stand already; (segment, CLOSE, 0) notes where that segment's subtree ends.
    work: list[tuple[int, int, int]] = []

    def push_groups(first: int, last: int, depth: int) -> None:
        groups = []
        start = first
        for i in range(first + 1, last + 1):
            if i == last or shared[i] - depth < min_shared:
                groups.append((start, i, depth))
                start = i
        work.extend(reversed(groups))

    push_groups(0, len(ordered), 0)
    while work:
        first, last, depth = work.pop()
        if last == CLOSE:
            segments[first][2] = size
            continue
        common = len(ordered[first]) if last - first == 1 else min(shared[first + 1 : last])
        if common > depth:
            start, size = size, size + common - depth
            tokens.append(ordered[first][depth:common])
            positions.append(np.arange(depth, common))
            segments.append([start, size, size])
            own = np.arange(start, size)
            for i in range(first, last):
                pieces[order[i]].append(own)
            work.append((len(segments) - 1, CLOSE, 0))
        if last - first > 1:
            going_on = first
            while going_on < last and len(ordered[going_on]) == common:  # rows that end here; sorted first
                going_on += 1
            if going_on < last:
                push_groups(going_on, last, common)

    return Forest(
        _join(tokens), _join(positions), np.array(segments, np.int64).reshape(-1, 3), [_join(p) for p in pieces]
    )


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays, dtype=np.int64) if arrays else np.zeros(0, np.int64)
