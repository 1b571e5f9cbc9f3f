"""Examples as token ids and labels in flat arrays, cut to cutoff_len, with a report on every row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from llmforge.data.encode_block import Block, Cutter, FlatRows, Outline, gap, outline
from llmforge.data.example import IGNORE, Encoded, EncodedSet, Example, RowReport
from llmforge.data.templates.parts import Chunk
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.data.truncate import strategy
from llmforge.errors import RecipeError

EVERY_REPLY = LabelPolicy()
VERSION = 2  # goes up with every change of ids or labels, so that encoded copies on disk are made anew
BLOCK = 2000  # rows encoded together: enough to keep all cores busy, 10 MB at most for short rows
BLOCK_CHARACTERS = 4_000_000  # and of long rows so much text


class Sink(Protocol):
    """Where encoded rows go, in memory or on disk."""

    def add(self, rows: FlatRows, examples: np.ndarray) -> None: ...


class InMemory:
    """A sink that keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[FlatRows] = []
        self.examples: list[np.ndarray] = []

    def add(self, rows: FlatRows, examples: np.ndarray) -> None:
        self.rows.append(rows)
        self.examples.append(examples)

    def finish(self) -> EncodedSet:
        ids, labels = (np.concatenate([np.zeros(0, np.int32), *(r[i] for r in self.rows)]) for i in (0, 1))
        lengths = np.concatenate([np.zeros(0, np.int64), *(rows.lengths for rows in self.rows)])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return EncodedSet(ids, labels, offsets, np.concatenate([np.zeros(0, np.int64), *self.examples]))


@dataclass(frozen=True)
class EncodeOptions:
    """What decides the ids and labels of a row besides its text, the template and the tokenizer."""

    stage: str
    policy: LabelPolicy = EVERY_REPLY
    cutoff_len: int = 2048
    truncation: str = "right"
    packing: bool | None = None
    fill: bool = False  # replies of a group are made equally long

    @property
    def joins(self) -> bool:
        """Whether plain texts are joined and cut into rows of equal length."""
        return self.stage == "pt" and self.packing is not False


@dataclass
class Outcome:
    """What happened to the rows, by their numbers."""

    rows_in: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    fixed: list[tuple[int, str]] = field(default_factory=list)

    def report(self, name: str, examples: Sequence[Example]) -> RowReport:
        rejected = [(examples[i].source, reason) for i, reason in self.rejected]
        fixed = [(examples[i].source, what) for i, what in self.fixed]
        return RowReport(name, self.rows_in, self.rows_in - len(rejected), rejected, fixed)


def encode_examples(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    stage: str,
    policy: LabelPolicy = EVERY_REPLY,
    cutoff_len: int = 2048,
    truncation: str = "right",
    packing: bool | None = None,
    name: str = "encode",
) -> tuple[EncodedSet, RowReport]:
    """Encode conversations with the template, or plain texts (stage pt) as they are, each followed by eos.

    Rows longer than `cutoff_len`, by `truncation`:
        right: the beginning and the end token stay, the reply loses its end; a row whose prompt alone is too long is
            rejected. A plain text keeps its beginning.
        left: the end stays.
        split: several rows, see `cut_up`; every learned token is learned once.
        drop: the row is rejected.
        raise: an error.
    Every row so changed stands in the report with its numbers. Rows without a learned token are rejected.

    Plain texts are joined and cut into rows of `cutoff_len` tokens unless `packing` is false; the rest of the last
    text makes a shorter last row. Such rows look into the text before them, as in pretraining everywhere.

    Returns:
        The rows, whose `examples` are positions in `examples`, and the report, in which rows_in == rows_out + rejected.

    Raises:
        RecipeError: a too long row under "raise", or plain text and a tokenizer without eos.
    """
    options = EncodeOptions(stage, policy, cutoff_len, truncation, packing)
    sink = InMemory()
    outcome = encode_stream(iter(examples), RowEncoder(template, tokenizer, options), sink)
    encoded, report = sink.finish(), outcome.report(name, examples)
    if options.joins:
        encoded = join_texts(encoded, cutoff_len)
        report.notes.append(joined_note(len(examples), len(encoded), cutoff_len))
    elif len(encoded) != report.rows_out:
        report.notes.append(split_note(report.rows_out, len(encoded)))
    return encoded, report


def encode_stream(examples: Iterator[Example], encoder: RowEncoder, sink: Sink) -> Outcome:
    """Encode examples as they come, a block at a time; while one block is in the tokenizer, the next one is read."""
    outcome = Outcome()
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Gathered, Future[FlatRows]] | None = None
        for block in _blocks(examples):
            gathered = encoder.gather(block, outcome.rows_in)
            outcome.rows_in += len(block)
            encoded = pool.submit(gathered.block.encode, encoder.tokenizer)
            if waiting:
                encoder.finish(waiting[0], waiting[1].result(), outcome, sink)
            waiting = gathered, encoded
        if waiting:
            encoder.finish(waiting[0], waiting[1].result(), outcome, sink)
    return outcome


class Gathered(NamedTuple):
    """A block that is ready for the tokenizer: its rows' examples by number, and those that do not fit the template."""

    block: Block
    numbers: list[int]
    sources: list[str]
    refused: list[tuple[int, str]]


class RowEncoder:
    """Turns blocks of examples into rows."""

    def __init__(self, template: Template, tokenizer: Tokenizer, options: EncodeOptions):
        self.tokenizer, self.options = tokenizer, options
        self.cutter = Cutter(template, tokenizer, options.policy)
        is_text = options.stage == "pt"
        if is_text and tokenizer.eos_id is None:
            raise RecipeError(f"stage pt ends each text with eos; the tokenizer of {tokenizer.folder} names none")
        self.text: Outline | None = None
        if is_text and tokenizer.eos_id is not None:
            self.text = outline([Chunk(gap(0), True), Chunk(tokenizer.eos_id, True)])
        stop_ids = frozenset() if is_text else frozenset(template.stop_ids(tokenizer))
        kept = "start" if is_text and options.truncation == "right" else options.truncation
        self.shorten = strategy(kept, options.cutoff_len, stop_ids, tokenizer.bos_id)

    def gather(self, examples: Sequence[Example], first: int) -> Gathered:
        gathered = Gathered(Block(), [], [], [])
        for number, example in enumerate(examples, first):
            if self.text:
                gathered.block.add(self.text, [example.text or ""])
            else:
                try:
                    gathered.block.add(*self.cutter.cut(example.messages, example.tools))
                except RecipeError as error:
                    gathered.refused.append((number, str(error)))
                    continue
            gathered.numbers.append(number)
            if self.options.truncation == "raise":
                gathered.sources.append(str(example.source))
        return gathered

    def finish(self, gathered: Gathered, rows: FlatRows, outcome: Outcome, sink: Sink) -> None:
        """Cut rows that are too long, leave out those that teach nothing, and hand the rest on."""
        numbers = np.array(gathered.numbers, np.int64)
        if self.options.joins:
            sink.add(rows, numbers)
            return
        limit = self.options.cutoff_len
        starts = np.cumsum(rows.lengths) - rows.lengths
        rows.labels[starts[rows.lengths > 0]] = IGNORE  # nothing predicts a row's first token
        learned = np.concatenate([[0], np.cumsum(rows.labels != IGNORE)])
        learns = learned[starts + rows.lengths] > learned[starts]
        if learns.all() and (rows.lengths <= limit).all():
            sink.add(rows, numbers)
            outcome.rejected += gathered.refused
            return
        kept: list[Encoded] = []
        owners: list[int] = []
        rejected = list(gathered.refused)
        for i, number in enumerate(gathered.numbers):
            start, length = int(starts[i]), int(rows.lengths[i])
            row = Encoded(*(flat[start : start + length].tolist() for flat in rows[:2]))
            pieces = [row] if length <= limit else self.cut_long(row, gathered, i)
            pieces = [piece for piece in pieces if any(label != IGNORE for label in piece.labels[1:])]
            if not pieces:
                rejected.append((number, _reason(length, limit, self.options.truncation)))
            elif length > limit:
                outcome.fixed.append((number, _change(length, pieces, self.options.truncation)))
            kept += pieces
            owners += [number] * len(pieces)
        outcome.rejected += sorted(rejected)
        if kept:
            made = EncodedSet.of(kept)
            made.labels[made.offsets[:-1]] = IGNORE
            sink.add(FlatRows(made.input_ids, made.labels, made.lengths), np.array(owners, np.int64))

    def cut_long(self, row: Encoded, gathered: Gathered, i: int) -> list[Encoded]:
        if self.options.truncation == "raise":
            limit = self.options.cutoff_len
            raise RecipeError(
                f"{gathered.sources[i]}: {len(row.input_ids)} tokens, cutoff_len is {limit} (truncation: raise)"
            )
        return self.shorten(row)


def join_texts(rows: EncodedSet, length: int) -> EncodedSet:
    """Texts laid one after the other and cut into rows of `length` tokens.

    A last token of its own is left out, since nothing predicts it. `examples` name the text a row begins with.
    """
    total = int(rows.offsets[-1])
    end = total - 1 if total % length == 1 else total
    offsets = np.append(np.arange(0, end, length, dtype=np.int64), end)
    owners = np.searchsorted(rows.offsets, offsets[:-1], side="right") - 1
    ids = rows.input_ids  # every token is learned, so the ids are the labels
    return EncodedSet(ids, ids, offsets, rows.examples[owners])


def joined_note(texts: int, rows: int, length: int) -> str:
    return f"{texts} texts became {rows} rows of up to {length} tokens"


def split_note(rows: int, pieces: int) -> str:
    return f"{rows} rows became {pieces} by splitting"


def _blocks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Runs of examples that are encoded together."""
    block: list[Example] = []
    room = BLOCK_CHARACTERS
    for example in examples:
        block.append(example)
        room -= len(example.text or "") + sum([len(message.content) for message in example.messages])
        if len(block) == BLOCK or room <= 0:
            yield block
            block, room = [], BLOCK_CHARACTERS
    if block:
        yield block


def _reason(length: int, cutoff_len: int, truncation: str) -> str:
    if length <= cutoff_len:
        return "no token to learn"
    if truncation == "drop":
        return f"longer than cutoff_len {cutoff_len}"
    return f"longer than cutoff_len {cutoff_len}, and nothing to learn would stay (truncation: {truncation})"


def _change(length: int, pieces: list[Encoded], truncation: str) -> str:
    if truncation == "split":
        return f"{length} tokens split into {len(pieces)} rows"
    return f"{length} tokens cut to {len(pieces[0].input_ids)} ({truncation})"
