"""The canonical example: what every data format becomes, and what it is encoded to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
PIECE = 65536  # rows looked at together, so that a mapped file passes through memory piece by piece
IGNORE = -100  # the label of a token that is not learned, as in torch's cross_entropy
FILL = -1  # the label of a token that makes replies equally long: it has a value, and is never predicted
MARK = -1000  # this and below: the label of a member's first token in a group of rows (data/groups.py)


class RowRef(NamedTuple):
    """Where an example came from, for every message about it."""

    file: str
    row: int  # from 1: line of a JSONL or text file, record of a JSON list or of a table; 0: the file as a whole

    def __str__(self) -> str:
        return f"{self.file} row {self.row}" if self.row else self.file


@dataclass(frozen=True)
class ToolCall:
    """One call the assistant makes: a function's name and its arguments."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `train` overrides the label policy for this turn: True learns it, False masks it, None leaves it."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    train: bool | None = None


@dataclass(frozen=True)
class Example:
    """One training or test row in canonical form.

    `messages` end with the assistant's reply for sft; for preference data they end before it, and `chosen` and
    `rejected` hold the two replies; of scored replies they are the best and the worst, and `replies` holds all of them
    with their scores. A plain text (stage pt) is `text` with no messages. `label` is KTO's verdict.
    `tools` holds OpenAI-style function schemas.
    """

    messages: tuple[Message, ...]
    source: RowRef
    tools: tuple[dict[str, Any], ...] = ()
    chosen: Message | None = None
    rejected: Message | None = None
    replies: tuple[tuple[Message, float], ...] = ()
    label: bool | None = None
    text: str | None = None
    dataset: str = ""
    group: str | None = None  # value of the column val_group_by; equal values stay on one side of a split


class Encoded(NamedTuple):
    """Token ids and aligned labels; a label is IGNORE or the id to predict AT that position (the model shifts by one).

    A label may differ from its id: Baichuan2's own style asks for eos at the next user mark.
    """

    input_ids: list[int]
    labels: list[int]


class EncodedSet(Sequence[Encoded]):
    """Many encoded rows in flat arrays, so that a million short rows cost 8 bytes a token and no Python objects.

    Attributes:
        input_ids, labels: (tokens,) int32, all rows one after the other.
        offsets: (rows + 1,) int64; row i is [offsets[i], offsets[i + 1]).
        examples: (rows,) int64, the position of each row's example in the list that was encoded.
        reference: log-probabilities of groups' members under a reference model (data/groups.py), where they were asked.
    """

    reference: Any = None

    def __init__(self, input_ids: np.ndarray, labels: np.ndarray, offsets: np.ndarray, examples: np.ndarray):
        self.input_ids, self.labels, self.offsets, self.examples = input_ids, labels, offsets, examples

    @classmethod
    def of(cls, rows: Sequence[Encoded], examples: Sequence[int] | None = None) -> EncodedSet:
        """Pack rows; `examples` defaults to their positions."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row.input_ids) for row in rows], out=offsets[1:])
        flat = np.empty((2, int(offsets[-1])), np.int32)
        for i, row in enumerate(rows):
            flat[0, offsets[i] : offsets[i + 1]] = row.input_ids
            flat[1, offsets[i] : offsets[i + 1]] = row.labels
        index = np.arange(len(rows)) if examples is None else np.asarray(examples, np.int64)
        return cls(flat[0], flat[1], offsets, index)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def learned(self) -> np.ndarray:
        """(rows,) how many tokens of each row are learned; a row's first one never is, and filling is none."""
        counts = np.zeros(len(self), np.int64)
        for start in range(0, len(self), PIECE):
            offsets = np.asarray(self.offsets[start : start + PIECE + 1])
            marks = self.labels[offsets[0] : offsets[-1]] >= 0
            marks[(offsets[:-1] - offsets[0])[np.diff(offsets) > 0]] = False
            done = np.concatenate([[0], np.cumsum(marks)])
            counts[start : start + PIECE] = np.diff(done[offsets - offsets[0]])
        return counts

    def ids_of(self, row: int) -> np.ndarray:
        """(length,) ids of one row, without a copy."""
        return self.input_ids[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self.offsets[index], self.offsets[index + 1]
        labels = self.labels[start:end].tolist()
        if labels and labels[0] > MARK:
            labels[0] = IGNORE  # nothing predicts a row's first token, also where joined texts were cut
        return Encoded(self.input_ids[start:end].tolist(), labels)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[i] for i in range(len(self)))


@dataclass
class RowReport:
    """What happened to every row of one step: rows_in == rows_out + len(rejected).

    `rows_in` counts the rows that were looked at, `rows_out` those that got through. Rows left out because of
    max_samples, rows joined by packing and rows made by splitting long ones are told in `notes`.
    """

    name: str
    rows_in: int = 0
    rows_out: int = 0
    rejected: list[tuple[RowRef, str]] = field(default_factory=list)
    fixed: list[tuple[RowRef, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def reject(self, source: RowRef, reason: str) -> None:
        self.rejected.append((source, reason))

    def fix(self, source: RowRef, what: str) -> None:
        self.fixed.append((source, what))

    def reasons(self) -> dict[str, int]:
        """Rejected rows counted by reason, the most frequent first."""
        counts: dict[str, int] = {}
        for _, reason in self.rejected:
            counts[reason] = counts.get(reason, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def as_dict(self) -> dict[str, Any]:
        """The form written to data_report.json."""
        return {
            "name": self.name,
            "rows_in": self.rows_in,
            "rows_ok": self.rows_out,
            "rejected": [{"file": s.file, "row": s.row, "reason": r} for s, r in self.rejected],
            "fixed": [{"file": s.file, "row": s.row, "what": w} for s, w in self.fixed],
            "notes": list(self.notes),
        }
