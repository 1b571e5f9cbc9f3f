"""Rows of one data set as canonical examples, with a report on every row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from llmforge.config.names import FORMATS
from llmforge.data.entry import COLUMN_NAMES, MEDIA, DatasetEntry
from llmforge.data.example import Example, RowRef, RowReport
from llmforge.data.files import data_files, read_rows
from llmforge.data.formats.row import PROMPT_STAGES, RANKING_STAGES, MissingColumn, Rejected, RowContext, type_name
from llmforge.data.hub import read_hub_rows
from llmforge.data.recognise import recognise
from llmforge.errors import RecipeError, nearest

HEAD = 100  # rows looked at before reading: which columns there are, which form messages have
LONGEST_ROW = 10_000_000  # characters; tokenising them takes 10 s and 2 GB, and all but cutoff_len is thrown away


def read_examples(
    entry: DatasetEntry,
    *,
    stage: str,
    max_samples: int | None = None,
    seed: int = 42,
    group_by: str | None = None,
) -> tuple[list[Example], RowReport]:
    """`iter_examples` as a list, and its report."""
    report = RowReport(f"read {entry.name}")
    found = list(iter_examples(entry, report, stage=stage, max_samples=max_samples, seed=seed, group_by=group_by))
    return found, report


def iter_examples(
    entry: DatasetEntry,
    report: RowReport,
    *,
    stage: str,
    max_samples: int | None = None,
    seed: int = 42,
    group_by: str | None = None,
) -> Iterator[Example]:
    """Read a data set row by row, so that a long file needs no memory (JSON lists and draws by num_samples do).

    Args:
        report: is told what happens to every row; complete, with rows_in == rows_out + rejected, at the end.
        stage: a training stage, or "prompt" for rows to be answered, whose reply may be missing.
        max_samples: rows looked at, from the start (of the drawn rows, when the entry has num_samples).
        seed: of the draw that num_samples asks for; rows repeat when it asks for more than there are.
        group_by: a column whose value becomes `Example.group`.

    Yields:
        The examples in the order of the rows.

    Raises:
        RecipeError: the files cannot be read, lack a column in all their first rows, or do not fit the stage.
    """
    rows = _rows(entry, report)
    head = list(islice(rows, HEAD))
    entry, notes = recognise(entry, [row for _, row in head], stage)
    report.notes += notes
    _check_stage(entry, stage)
    _check_columns(entry, [row for _, row in head], group_by)
    reply = entry.columns.response if stage == "pt" and entry.formatting == "alpaca" else None
    if reply and any(isinstance(row, dict) and row.get(reply) for _, row in head):
        report.notes.append(f"dataset {entry.name!r}: stage pt learns the prompt columns; {reply!r} is not read")
    rows = chain(head, rows)
    if entry.num_samples:
        rows = _draw(list(rows), entry.num_samples, seed)
    if max_samples:
        rows = islice(rows, max_samples)
    yield from _convert(entry, rows, stage, group_by, report)
    if max_samples and report.rows_in == max_samples:
        report.notes.append(f"dataset {entry.name!r}: the first {max_samples} rows were taken (max_samples)")


def _convert(
    entry: DatasetEntry, rows: Iterator[tuple[RowRef, Any]], stage: str, group_by: str | None, report: RowReport
) -> Iterator[Example]:
    read = FORMATS.get(entry.formatting)
    context = RowContext(entry, stage, RowRef("", 0))
    missing: dict[str, int] = {}
    columns: dict[str, None] = {}
    for source, row in rows:
        report.rows_in += 1
        context.source, context.fixes = source, []
        try:
            if not isinstance(row, dict):
                raise Rejected(f"the row is {type_name(row)}, not an object")
            example: Example = read(row, context)
        except RecursionError:
            report.reject(source, "nested too deeply")
            continue
        except Rejected as reason:
            report.reject(source, str(reason))
            if isinstance(reason, MissingColumn):
                missing[reason.column] = missing.get(reason.column, 0) + 1
                columns.update(dict.fromkeys(row))
            continue
        if (size := _characters(example)) > LONGEST_ROW:
            report.reject(source, f"{size:,} characters; a row may have {LONGEST_ROW:,}: cut it into several")
            continue
        value = row.get(group_by) if group_by else None
        report.rows_out += 1
        for what in context.fixes:
            report.fix(source, what)
        # Set in place: the format made it a moment ago for nobody else, and `replace` would cost a third of reading.
        object.__setattr__(example, "dataset", entry.name)
        object.__setattr__(example, "group", None if value is None else str(value))
        yield example
    for column, count in missing.items():
        if count == report.rows_in:
            raise _no_column(entry, column, list(columns))
    report.notes += context.differs_from_llamafactory()


def _characters(example: Example) -> int:
    pair = (reply for reply in (example.chosen, example.rejected) if reply)
    replies = [reply for reply, _ in example.replies] or pair
    return len(example.text or "") + sum([len(message.content) for message in (*example.messages, *replies)])


def _rows(entry: DatasetEntry, report: RowReport) -> Iterator[tuple[RowRef, Any]]:
    """Rows of all files of the entry, in sorted order, with where they came from."""
    if entry.hub:
        for number, row in read_hub_rows(entry):
            yield RowRef(entry.where, number), row
        return
    assert entry.path is not None
    for path in data_files(entry.path):
        whole = RowRef(str(path), 0)
        for number, row in read_rows(path, partial(report.fix, whole), document=entry.document):
            yield whole._replace(row=number), row


def _draw(rows: list[tuple[RowRef, Any]], wanted: int, seed: int) -> Iterator[tuple[RowRef, Any]]:
    """`wanted` rows in random order; all rows once before any comes twice, as LLaMA-Factory draws them."""
    if not rows:
        return
    random = np.random.default_rng(seed)
    order = random.permutation(len(rows))[:wanted]
    if wanted > len(rows):
        order = np.concatenate([order, random.choice(len(rows), wanted - len(rows))])
    for index in order:
        yield rows[index]


def _check_stage(entry: DatasetEntry, stage: str) -> None:
    """Raises RecipeError when the entry's kind of rows is not the stage's."""
    where = f"dataset {entry.name!r}"
    if stage in RANKING_STAGES:
        if not entry.ranking:
            raise RecipeError(
                f'{where}: stage {stage} learns from pairs; the entry needs "ranking": true and columns for chosen and '
                f"rejected, or for replies and scores"
            )
        scored = entry.columns.replies is not None or entry.columns.scores is not None
        for name in ("replies", "scores") if scored else ("chosen", "rejected"):
            if getattr(entry.columns, name) is None:
                raise RecipeError(f"{where}: columns.{name}: needed at stage {stage}")
    elif entry.ranking and stage not in PROMPT_STAGES:
        raise RecipeError(f'{where}: "ranking": true is for stages {" and ".join(RANKING_STAGES)}, not for {stage}')
    if stage == "kto" and entry.columns.kto_tag is None:
        raise RecipeError(f"{where}: columns.kto_tag: needed at stage kto")
    if stage == "sft" and entry.columns.kto_tag is not None:
        raise RecipeError(f"{where}: columns.kto_tag: its bad replies are for stage kto, not for sft")
    conversation = entry.formatting in ("sharegpt", "openai")
    if stage == "pt" and conversation:
        raise RecipeError(f"{where}: stage pt learns plain text, not conversations; name the text in columns.prompt")
    if stage != "pt" and entry.formatting == "text":
        raise RecipeError(f"{where}: plain text is for stage pt, not for {stage}")


def _check_columns(entry: DatasetEntry, rows: list[Any], group_by: str | None) -> None:
    """Raises RecipeError when a column that the entry names is in none of the first rows."""
    columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    if not columns:
        return
    for name in COLUMN_NAMES:
        column = getattr(entry.columns, name)
        if name in entry.named and name not in MEDIA and column and column not in columns:
            raise _no_column(entry, column, columns, f"columns.{name}: ")
    if group_by and group_by not in columns:
        raise _no_column(entry, group_by, columns, "val_group_by: ")


def _no_column(entry: DatasetEntry, column: str, columns: list[str], key: str = "") -> RecipeError:
    return RecipeError(
        f"dataset {entry.name!r}: {key}{entry.where} has no column {column!r}.{nearest(column, columns)} "
        f"It has: {', '.join(map(str, columns))}"
    )
