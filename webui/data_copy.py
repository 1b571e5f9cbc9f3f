"""A copy of a data set with the rows that can be used; the file itself stays as it is."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from llmforge.data.entry import DatasetEntry
from llmforge.data.example import RowReport
from llmforge.data.files import data_files, kind_of, read_rows
from llmforge.data.inspect import natural_stage
from llmforge.data.prepare import Reading
from llmforge.data.registry import INFO_NAME, resolve_dataset
from llmforge.datagen.register import add_entries
from llmforge.runs import atomic_write
from llmforge.webui.board import Board
from llmforge.webui.refusal import Refusal

TABLES = ("json", "jsonl", "csv", "tsv", "xlsx", "parquet", "arrow")  # rows with columns, which JSON lines can hold


def save_usable(board: Board, name: str) -> tuple[str, int]:
    """Write data/NAME_usable.jsonl and describe it as NAME is; (its name, its rows). An earlier copy is replaced.

    Raises:
        RecipeError: no such data set; a Refusal where its rows are no table of this project.
    """
    entry = resolve_dataset(name, board.data)
    registry = board.data / INFO_NAME
    known = json.loads(registry.read_text(encoding="utf-8")).get(name)
    if entry.path is None or known is None or any(kind_of(path) not in TABLES for path in data_files(entry.path)):
        raise Refusal("data.copy_no_table", name=name)
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in _usable(entry, entry.path)]
    copy = f"{name}_usable"
    place = board.path(board.data / f"{copy}.jsonl")
    atomic_write(place, "".join(lines))
    add_entries(registry, {copy: {**known, "file_name": place.name}}, replace=True)
    return copy, len(lines)


def _usable(entry: DatasetEntry, path: Path) -> Iterator[object]:
    """The rows as they are in the file, without those that reading leaves out."""
    report = RowReport("copy")
    deque(Reading(entry, natural_stage(entry)).examples(report), maxlen=0)
    bad = {(source.file, source.row) for source, _ in report.rejected}
    for file in data_files(path):
        for number, row in read_rows(file, lambda text: None, document=entry.document):
            if (str(file), number) not in bad:
                yield row
