"""Rows that are judged together, as one row of an encoded set: the replies to a prompt, each with a mark.

Splitting, mixing, caching and the plan of steps count such a group as one row, so a pair never comes apart. Its members
stand one after the other; a member's first token, which nothing predicts, carries the member's mark as its label.
What a mark means is the stage's affair: rm and dpo prefer the larger one, kto's marks are verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llmforge.data.example import FILL, IGNORE, MARK, Encoded
from llmforge.data.prefix_tree import build_forest

UNDESIRED, DESIRED, UNRELATED = 0, 1, 2  # kto: the verdict, and a prompt with another prompt's reply


def join_group(members: Sequence[Encoded], marks: Sequence[int]) -> Encoded:
    """Members as one row; marks are whole numbers from 0."""
    ids: list[int] = []
    labels: list[int] = []
    for member, mark in zip(members, marks, strict=True):
        ids += member.input_ids
        labels += [MARK - mark, *member.labels[1:]]
    return Encoded(ids, labels)


def is_group(row: Encoded) -> bool:
    return bool(row.labels) and row.labels[0] <= MARK


def open_group(row: Encoded) -> tuple[list[Encoded], list[int]]:
    """The members and marks of a group; an ordinary row is its own only member, of mark 0."""
    if not is_group(row):
        return [row], [0]
    starts = [i for i, label in enumerate(row.labels) if label <= MARK]
    ends = [*starts[1:], len(row.labels)]
    members = [
        Encoded(row.input_ids[start:end], [IGNORE, *row.labels[start + 1 : end]])
        for start, end in zip(starts, ends, strict=True)
    ]
    return members, [MARK - row.labels[start] for start in starts]


def fill_up(members: Sequence[Encoded], pad_id: int) -> list[Encoded]:
    """Members of equal length: shorter ones go on with `pad_id`, whose label FILL is no token to learn."""
    longest = max(len(member.input_ids) for member in members)
    missing = [longest - len(member.input_ids) for member in members]
    return [
        Encoded([*member.input_ids, *[pad_id] * count], [*member.labels, *[FILL] * count])
        for member, count in zip(members, missing, strict=True)
    ]


def first_and_rest(row: Encoded, share: bool) -> tuple[np.ndarray, int]:
    """The first member's ids, and the tokens that the other members add on a line, with or without shared starts."""
    ids = [np.asarray(member.input_ids, np.int64) for member in open_group(row)[0]]
    if not share or len(ids) == 1:
        return ids[0], sum(len(member) for member in ids[1:])
    return ids[0], len(build_forest(ids).tokens) - len(ids[0])


def member_offsets(rows: Sequence[Encoded]) -> np.ndarray:
    """(rows + 1,) where each row's members stand in a list of all members."""
    counts = [len(open_group(row)[0]) for row in rows]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


class MemberNumbers(NamedTuple):
    """A number for each member of each row."""

    offsets: np.ndarray  # (rows + 1,)
    numbers: np.ndarray  # (members,)

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """The numbers of some rows' members, one after the other."""
        parts = [self.numbers[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        return np.concatenate([self.numbers[:0], *parts])


class Members(Sequence[Encoded]):
    """The rows of a set with the members of one mark alone, or with all others."""

    def __init__(self, rows: Sequence[Encoded], mark: int, inside: bool):
        self.rows, self.mark, self.inside = rows, mark, inside

    def keeps(self, mark: int) -> bool:
        return (mark == self.mark) == self.inside

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        members, marks = open_group(self.rows[index])
        kept = [number for number, mark in enumerate(marks) if self.keeps(mark)]
        return join_group([members[number] for number in kept], [marks[number] for number in kept])
