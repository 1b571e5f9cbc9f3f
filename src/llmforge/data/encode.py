"""Examples as token ids and labels in flat arrays, cut to cutoff_len, with a report on every row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from llmforge.data.example import IGNORE, Encoded, EncodedSet, Example, RowReport
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.data.truncate import strategy
from llmforge.errors import RecipeError

EVERY_REPLY = LabelPolicy()
VERSION = 1  # goes up with every change of ids or labels, so that encoded copies on disk are made anew


class _Rows:
    """Rows as they come, 8 bytes a token; lists of Python integers would take ten times that."""

    def __init__(self) -> None:
        self.ids, self.labels = array("i"), array("i")
        self.offsets, self.examples = array("q", [0]), array("q")

    def add(self, row: Encoded, example: int) -> None:
        self.ids.extend(row.input_ids)
        self.labels.extend(row.labels)
        self.labels[self.offsets[-1]] = IGNORE  # nothing predicts a row's first token
        self.offsets.append(len(self.ids))
        self.examples.append(example)

    def finish(self) -> EncodedSet:
        ids, labels = np.array(self.ids, np.int32), np.array(self.labels, np.int32)
        return EncodedSet(ids, labels, np.array(self.offsets, np.int64), np.array(self.examples, np.int64))


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
    report = RowReport(name, rows_in=len(examples))
    if stage == "pt" and packing is not False:
        return _join_texts(examples, tokenizer, cutoff_len, report), report
    stop_ids = frozenset(template.stop_ids(tokenizer)) if stage != "pt" else frozenset()
    shorten = strategy(
        "start" if stage == "pt" and truncation == "right" else truncation, cutoff_len, stop_ids, tokenizer.bos_id
    )
    rows = _Rows()
    for number, example in enumerate(examples):
        try:
            row = _encode(example, template, tokenizer, stage, policy)
        except RecipeError as error:
            report.reject(example.source, str(error))
            continue
        length = len(row.input_ids)
        pieces = [row]
        if length > cutoff_len:
            if truncation == "raise":
                raise RecipeError(f"{example.source}: {length} tokens, cutoff_len is {cutoff_len} (truncation: raise)")
            pieces = shorten(row)
        pieces = [piece for piece in pieces if any(label != IGNORE for label in piece.labels[1:])]
        if not pieces:
            report.reject(example.source, _reason(length, cutoff_len, truncation))
            continue
        if length > cutoff_len:
            report.fix(example.source, _change(length, pieces, truncation))
        for piece in pieces:
            rows.add(piece, number)
    report.rows_out = report.rows_in - len(report.rejected)
    encoded = rows.finish()
    if len(encoded) != report.rows_out:
        report.notes.append(f"{report.rows_out} rows became {len(encoded)} by splitting")
    return encoded, report


def _encode(example: Example, template: Template, tokenizer: Tokenizer, stage: str, policy: LabelPolicy) -> Encoded:
    if stage == "pt":
        ids = _text_ids(example, tokenizer)
        return Encoded(ids, list(ids))
    return template.encode(tokenizer, example.messages, example.tools, policy=policy)


def _text_ids(example: Example, tokenizer: Tokenizer) -> list[int]:
    if tokenizer.eos_id is None:
        raise RecipeError(f"stage pt ends each text with eos; the tokenizer of {tokenizer.folder} names none")
    return [*tokenizer.ids(example.text or ""), tokenizer.eos_id]


def _join_texts(examples: Sequence[Example], tokenizer: Tokenizer, length: int, report: RowReport) -> EncodedSet:
    rows = _Rows()
    for first, ids in _blocks(examples, tokenizer, length):
        rows.add(Encoded(ids, list(ids)), first)
    encoded = rows.finish()
    report.rows_out = report.rows_in
    report.notes.append(f"{report.rows_out} texts became {len(encoded)} rows of up to {length} tokens")
    return encoded


def _blocks(examples: Sequence[Example], tokenizer: Tokenizer, length: int) -> Iterator[tuple[int, list[int]]]:
    """(position of the text it begins with, ids) of each row of joined texts; the last one may be shorter."""
    held: list[int] = []
    first = 0
    for number, example in enumerate(examples):
        if not held:
            first = number
        held += _text_ids(example, tokenizer)
        whole = len(held) // length * length
        for start in range(0, whole, length):
            yield first, held[start : start + length]
            first = number  # what follows the first block of this round belongs to this text
        held = held[whole:]
    if len(held) > 1:
        yield first, held


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
