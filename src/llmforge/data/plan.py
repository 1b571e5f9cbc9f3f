"""Batches: which rows go through the model together, and which hidden states predict which tokens. numpy only.

Two layouts. "padded" puts each row on its own line, as every model takes it. "packed" puts many rows one after the
other on a single line, each in its own segment; attention must stay inside a segment.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llmforge.data.example import IGNORE, Encoded

Layout = Literal["padded", "packed"]


@dataclass(frozen=True)
class Batch:
    """Rows laid out for one forward pass.

    "Flat" counts positions of `input_ids` line by line, padding included, so it indexes `hidden.reshape(-1, H)`.

    Attributes:
        input_ids: (B, T) padded or (1, T) packed, int64.
        position_ids: the same shape; each row counts from 0, padding goes on counting.
        segments: (S, 3) flat start, end, subtree end. A token sees its own segment up to itself (and all segments
            that hold it in their subtree). Padding belongs to no segment.
        state: (N,) flat index of the hidden state that predicts a target. A row's first token is never a target.
        target: (N,) the id to predict from that state.
        row: (N,) which row of the batch the target counts for, 0 to num_rows - 1.
        num_rows: rows in the batch.
        rows: (num_rows,) their positions in the list that was planned.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    segments: np.ndarray
    state: np.ndarray
    target: np.ndarray
    row: np.ndarray
    num_rows: int
    rows: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(S,) tokens of each segment; in the padded layout the unpadded length of each line."""
        return self.segments[:, 1] - self.segments[:, 0]

    @property
    def num_tokens(self) -> int:
        """Tokens that belong to a row, padding left out."""
        return int(self.lengths.sum())

    @property
    def attention_mask(self) -> np.ndarray:
        """(B, T) True on tokens, False on padding; what a padded forward pass needs."""
        mask = np.zeros(self.input_ids.size, bool)
        for start, end, _ in self.segments:
            mask[start:end] = True
        return mask.reshape(self.input_ids.shape)


def plan_batches(
    rows: Sequence[Encoded], budget: int, layout: Layout, *, max_rows: int | None = None, pad_id: int = 0
) -> list[Batch]:
    """Sort rows into batches of similar length (padded) or into full lines (packed).

    Args:
        budget: positions of a batch, padding included. A row longer than the budget gets a batch of its own; nothing
            is dropped or cut here.
        max_rows: rows a batch may have.
        pad_id: what stands in padding. It is never attended to and never a target.

    Returns:
        Batches that hold every row once; the same rows always give the same batches.

    Raises:
        ValueError: an unknown layout, or a row without tokens.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout: got {layout!r}, expected one of {', '.join(get_args(Layout))}")
    lengths = [len(row.input_ids) for row in rows]
    if 0 in lengths:
        raise ValueError(f"row {lengths.index(0)} has no tokens")
    limit = max_rows or len(rows)
    if layout == "padded":
        return [lay_padded(rows, group, pad_id) for group in _by_length(lengths, budget, limit)]
    return [lay_packed(rows, group) for group in best_fit(lengths, budget, limit)]


def _by_length(lengths: list[int], budget: int, limit: int) -> list[list[int]]:
    """Neighbours in length share a batch, the longest first, so that running out of memory shows at once."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups:
            widest, size = lengths[groups[-1][0]], len(groups[-1]) + 1
            if size <= limit and widest * size <= budget:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def best_fit(lengths: list[int], budget: int, limit: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: each row goes where the least room stays free."""
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, group), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        slot = bisect_left(room, (lengths[index], -1))
        if slot < len(room):
            free, group = room.pop(slot)
        else:
            free, group = budget, len(groups)
            groups.append([])
        groups[group].append(index)
        free -= lengths[index]
        if free > 0 and len(groups[group]) < limit:
            insort(room, (free, group))
    return groups


def lay_padded(rows: Sequence[Encoded], group: Sequence[int], pad_id: int = 0) -> Batch:
    """Rows `group` on one line each, padded on the right to the longest."""
    chosen = [rows[i] for i in group]
    width = max((len(row.input_ids) for row in chosen), default=1)
    input_ids = np.full((len(chosen), width), pad_id, np.int64)
    for line, row in enumerate(chosen):
        input_ids[line, : len(row.input_ids)] = row.input_ids
    starts = np.arange(len(chosen), dtype=np.int64) * width
    position_ids = np.broadcast_to(np.arange(width, dtype=np.int64), input_ids.shape).copy()
    return _with_targets(input_ids, position_ids, chosen, starts, group)


def lay_packed(rows: Sequence[Encoded], group: Sequence[int]) -> Batch:
    """Rows `group` one after the other on a single line."""
    chosen = [rows[i] for i in group]
    lengths = [len(row.input_ids) for row in chosen]
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(chosen)]
    flat = [np.asarray(row.input_ids, np.int64) for row in chosen]
    positions = [np.arange(length, dtype=np.int64) for length in lengths]
    empty = np.zeros(0, np.int64)
    return _with_targets(
        np.concatenate([empty, *flat])[None], np.concatenate([empty, *positions])[None], chosen, starts, group
    )


def _with_targets(
    input_ids: np.ndarray, position_ids: np.ndarray, chosen: list[Encoded], starts: np.ndarray, group: Sequence[int]
) -> Batch:
    """Find the supervised pairs: the label at position t is predicted from the hidden state at t - 1."""
    lengths = np.array([len(row.input_ids) for row in chosen], np.int64)
    states, targets, owners = [], [], []
    for number, (row, start) in enumerate(zip(chosen, starts, strict=True)):
        labels = np.asarray(row.labels, np.int64)
        learned = np.flatnonzero(labels[1:] != IGNORE)
        states.append(start + learned)
        targets.append(labels[1:][learned])
        owners.append(np.full(len(learned), number, np.int64))
    empty = np.zeros(0, np.int64)
    ends = starts + lengths
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=np.stack([starts, ends, ends], axis=1) if len(chosen) else np.zeros((0, 3), np.int64),
        state=np.concatenate([empty, *states]),
        target=np.concatenate([empty, *targets]),
        row=np.concatenate([empty, *owners]),
        num_rows=len(chosen),
        rows=np.asarray(group, np.int64),
    )
