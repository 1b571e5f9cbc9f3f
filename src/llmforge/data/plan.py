"""Batches: which rows go through the model together, and which hidden states predict which tokens. numpy only.

Three layouts. "padded" puts each row on its own line, as every model takes it. "packed" puts many rows one after the
other on a single line, each in its own segment; attention must stay inside a segment. "tree" is packing in which a
start that rows share stands once, with the rows' own parts below it (data/prefix_tree.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.groups import open_group
from llmforge.data.prefix_tree import MIN_SHARED, build_forest, shared_length, sort_rows

Layout = Literal["padded", "packed", "tree"]


@dataclass(frozen=True)
class Batch:
    """Rows laid out for one forward pass.

    "Flat" counts positions of `input_ids` line by line, padding included, so it indexes `hidden.reshape(-1, H)`.

    Attributes:
        input_ids: (B, T) padded, or (1, T) packed or tree, int64.
        position_ids: the same shape; each row counts from 0, padding goes on counting.
        segments: (S, 3) flat start, end, subtree end. A token sees its own segment up to itself (and all segments
            that hold it in their subtree). Padding belongs to no segment.
        state: (N,) flat index of the hidden state that predicts a target (laid with `shift` 0: of the target itself).
            A row's first token is never a target.
        target: (N,) the id to predict from that state.
        row: (N,) which row of the batch the target counts for, 0 to num_rows - 1.
        num_rows: rows in the batch.
        rows: (num_rows,) their positions in the list that was planned; members of a group (data/groups.py) share one.
        group: (num_rows,) which rows belong together, counted from 0 in this batch; an ordinary row is alone.
        marks: (num_rows,) marks of a group's members; 0 for ordinary rows.
        reference: (num_rows,) log-probabilities under a reference model, where they were asked before.
        aside: other members of the same groups, which go through the model apart from these.
        row_tokens: tokens of all rows; more than `num_tokens` when rows share some.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    segments: np.ndarray
    state: np.ndarray
    target: np.ndarray
    row: np.ndarray
    num_rows: int
    rows: np.ndarray
    row_tokens: int
    group: np.ndarray
    marks: np.ndarray
    reference: np.ndarray | None = None
    aside: Batch | None = None

    @property
    def lengths(self) -> np.ndarray:
        """(S,) tokens of each segment; in the padded layout the unpadded length of each line."""
        return self.segments[:, 1] - self.segments[:, 0]

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding left out."""
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
    """Sort rows into batches of similar length (padded), into full lines (packed), or by their starts (tree).

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
    if layout == "packed":
        return [lay_packed(rows, group) for group in best_fit(lengths, budget, limit)]
    order, costs = by_start([row.input_ids for row in rows])
    return [lay_tree(rows, [order[i] for i in group]) for group in within_budget(costs, budget, limit)]


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


def by_start(ids: Sequence[Sequence[int] | np.ndarray]) -> tuple[list[int], np.ndarray]:
    """Rows sorted so that common starts stand together.

    Returns:
        The rows' numbers in that order, and (rows, 2): tokens of each, and how many of them its predecessor has too.
    """
    arrays = [np.asarray(row, np.int64) for row in ids]
    order = sort_rows(arrays)
    costs = np.array([[len(arrays[i]), 0] for i in order], np.int64).reshape(-1, 2)
    for place in range(1, len(order)):
        shared = shared_length(arrays[order[place - 1]], arrays[order[place]])
        costs[place, 1] = shared if shared >= MIN_SHARED else 0
    return order, costs


def within_budget(costs: np.ndarray, budget: int, limit: int | None = None) -> list[range]:
    """Cut rows sorted by start into neighbours whose tree stays within `budget` tokens.

    The first row of a pass costs all its tokens, the next ones what they do not share. A row longer than the budget
    has a pass of its own.
    """
    groups, start, size = [], 0, 0
    for place, (length, shared) in enumerate(costs.tolist()):
        if place > start and (size + length - shared > budget or place - start == limit):
            groups.append(range(start, place))
            start, size = place, 0
        size += length - (shared if place > start else 0)
    return [*groups, range(start, len(costs))] if len(costs) else groups


def even_parts(costs: np.ndarray, parts: int) -> list[range]:
    """Cut rows sorted by start into `parts` runs of neighbours (some may be empty) of about the same cost."""
    done = np.cumsum(costs[:, 0] - costs[:, 1])
    bounds = (
        np.searchsorted(done, done[-1] * np.arange(1, parts) / parts) + 1 if len(costs) else np.zeros(parts - 1, int)
    )
    bounds = [0, *np.minimum(bounds, len(costs)).tolist(), len(costs)]
    return [range(bounds[i], bounds[i + 1]) for i in range(parts)]


def lay_tree(rows: Sequence[Encoded], group: Sequence[int], min_shared: int = MIN_SHARED, *, shift: int = 1) -> Batch:
    """Rows `group` on a single line in which shared starts stand once; `shift` as in `lay_padded`."""
    chosen, members = _opened(rows, group)
    forest = build_forest([np.asarray(row.input_ids, np.int64) for row in chosen], min_shared)
    return _with_targets(
        forest.tokens[None], forest.positions[None], chosen, forest.paths, forest.segments, members, shift
    )


def lay_padded(rows: Sequence[Encoded], group: Sequence[int], pad_id: int = 0, *, shift: int = 1) -> Batch:
    """Rows `group` on one line each, padded on the right to the longest.

    A label belongs to the hidden state `shift` places before it: 1 where the token is to be predicted, 0 where the
    token itself gets a value.
    """
    chosen, members = _opened(rows, group)
    width = max((len(row.input_ids) for row in chosen), default=1)
    input_ids = np.full((len(chosen), width), pad_id, np.int64)
    for line, row in enumerate(chosen):
        input_ids[line, : len(row.input_ids)] = row.input_ids
    starts = np.arange(len(chosen), dtype=np.int64) * width
    position_ids = np.broadcast_to(np.arange(width, dtype=np.int64), input_ids.shape).copy()
    return _with_targets(input_ids, position_ids, chosen, *_own_lines(chosen, starts), members, shift)


def lay_packed(rows: Sequence[Encoded], group: Sequence[int], *, shift: int = 1) -> Batch:
    """Rows `group` one after the other on a single line; `shift` as in `lay_padded`."""
    chosen, members = _opened(rows, group)
    lengths = [len(row.input_ids) for row in chosen]
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(chosen)]
    flat = [np.asarray(row.input_ids, np.int64) for row in chosen]
    positions = [np.arange(length, dtype=np.int64) for length in lengths]
    empty = np.zeros(0, np.int64)
    return _with_targets(
        np.concatenate([empty, *flat])[None],
        np.concatenate([empty, *positions])[None],
        chosen,
        *_own_lines(chosen, starts),
        members,
        shift,
    )


class _Members(NamedTuple):
    """Where the rows of a batch come from: see Batch.rows, .group and .marks."""

    rows: np.ndarray
    group: np.ndarray
    marks: np.ndarray


def _opened(rows: Sequence[Encoded], group: Sequence[int]) -> tuple[list[Encoded], _Members]:
    """The chosen rows, groups opened into their members."""
    found: list[Encoded] = []
    marks: list[int] = []
    counts = []
    for i in group:
        members, of_members = open_group(rows[i])
        found += members
        marks += of_members
        counts.append(len(members))
    places = np.repeat(np.asarray(group, np.int64), counts)
    numbers = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return found, _Members(places, numbers, np.asarray(marks, np.int64))


def _own_lines(chosen: list[Encoded], starts: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Paths and segments of rows that share nothing."""
    ends = starts + np.array([len(row.input_ids) for row in chosen], np.int64)
    paths = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    return paths, np.stack([starts, ends, ends], axis=1) if len(chosen) else np.zeros((0, 3), np.int64)


def _with_targets(
    input_ids: np.ndarray,
    position_ids: np.ndarray,
    chosen: list[Encoded],
    paths: list[np.ndarray],
    segments: np.ndarray,
    members: _Members,
    shift: int,
) -> Batch:
    """Find the supervised pairs: the label at place t of a row goes with its hidden state at t - shift."""
    states, targets, owners = [], [], []
    for number, (row, path) in enumerate(zip(chosen, paths, strict=True)):
        labels = np.asarray(row.labels, np.int64)
        learned = np.flatnonzero(labels[shift:] != IGNORE)
        states.append(path[learned])
        targets.append(labels[shift:][learned])
        owners.append(np.full(len(learned), number, np.int64))
    empty = np.zeros(0, np.int64)
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        state=np.concatenate([empty, *states]),
        target=np.concatenate([empty, *targets]),
        row=np.concatenate([empty, *owners]),
        num_rows=len(chosen),
        rows=members.rows,
        row_tokens=sum(len(row.input_ids) for row in chosen),
        group=members.group,
        marks=members.marks,
    )
