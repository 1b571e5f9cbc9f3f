"""Rows out of files: json, jsonl, csv, tsv, txt, parquet, arrow, xlsx; gzipped text; folders of shards.

Small parsers of the standard library are used for text, because importing `datasets` or `pandas` takes seconds and
their errors name no row.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmforge.data.charset import open_bytes, open_text
from llmforge.errors import RecipeError, nearest, require

Row = dict[str, Any]
Remark = Callable[[str], None]  # takes what is worth telling about the file as a whole


def kind_of(path: Path) -> str | None:
    """The file's kind by its ending, without .gz; None for kinds that are not read."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1][1:] if suffixes and suffixes[-1][1:] in KINDS else None


def data_files(path: Path) -> list[Path]:
    """The file itself, or a folder's data files sorted by name; other and hidden files are left alone.

    Raises:
        RecipeError: the path does not exist, or the folder holds no data file.
    """
    if path.is_file():
        if kind_of(path) is None:
            raise RecipeError(f"{path}: files of this kind are not read. Known: {', '.join(KINDS)}, and .gz of them")
        return [path]
    if not path.is_dir():
        others = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RecipeError(f"{path}: no such file.{nearest(path.name, others)}")
    found = sorted(p for p in path.iterdir() if p.is_file() and kind_of(p) and not p.name.startswith((".", "_")))
    found = [p for p in found if p.name != "dataset_info.json"]
    if not found:
        raise RecipeError(f"{path}: no data file in this folder. Known kinds: {', '.join(KINDS)}, and .gz of them")
    return found


def read_rows(path: Path, remark: Remark, *, document: str = "line") -> Iterator[tuple[int, Any]]:
    """(row number from 1, row) of one file. A row is a dict in tables; JSON may hold anything.

    Args:
        remark: told what is odd about the file, such as an encoding that is not UTF-8.
        document: for txt, whether a "line" or the whole "file" is one row {"text": ...}. Empty lines are no rows.

    Raises:
        RecipeError: the file cannot be read; names file, line and column where there are such.
    """
    kind = kind_of(path)
    assert kind is not None, f"{path}: data_files gives known kinds only"
    try:
        if kind == "txt" and document == "file":
            yield from _whole_text(path, remark)
        else:
            yield from KINDS[kind](path, remark)
    except (EOFError, zlib.error, OSError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None


def _json(path: Path, remark: Remark) -> Iterator[tuple[int, Any]]:
    """A list of records, one record, or one record per line under the name .json, as some tools write it."""
    text_file, odd = open_text(path)
    with text_file as file:
        text = file.read()
    if odd:
        remark(odd)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _json_lines(path, io.StringIO(text))
            return
        raise RecipeError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as JSON ({error})") from None
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def _jsonl(path: Path, remark: Remark) -> Iterator[tuple[int, Any]]:
    text_file, odd = open_text(path, newline="\n")  # a \r inside a line would otherwise count as a line of its own
    if odd:
        remark(odd)
    with text_file as file:
        while (start := file.read(1)).isspace():
            pass
        file.seek(0)
        if start == "[":  # a JSON list under the wrong name
            file.close()
            yield from _json(path, lambda _: None)
        else:
            yield from _json_lines(path, file)


def _json_lines(path: Path, lines: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{path}: line {number}, column {error.colno}"
            raise RecipeError(f"{where}: not valid JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{path}: line {number}: cannot be read as JSON ({error})") from None


def _csv(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    yield from _table(path, remark, ",")


def _tsv(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    yield from _table(path, remark, "\t")


def _table(path: Path, remark: Remark, delimiter: str) -> Iterator[tuple[int, Row]]:
    """Records after the header; an empty cell is None, a missing or surplus cell an error."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own limit of 128 KiB is a limit for spreadsheets
    text_file, odd = open_text(path, newline="")
    if odd:
        remark(odd)
    with text_file as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        number = 0
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise RecipeError(f"{path}: line 1: the column {twice!r} stands twice")
            for record in reader:
                if not record:
                    continue
                number += 1
                if len(record) != len(header):
                    raise RecipeError(
                        f"{path}: line {reader.line_num}: {len(record)} cells, the header has {len(header)}"
                    )
                yield number, {name: cell or None for name, cell in zip(header, record, strict=True)}
        except csv.Error as error:
            raise RecipeError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from None


def _txt(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    text_file, odd = open_text(path)
    if odd:
        remark(odd)
    with text_file as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, {"text": line.removesuffix("\n")}


def _whole_text(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    text_file, odd = open_text(path)
    if odd:
        remark(odd)
    with text_file as file:
        text = file.read()
    if text.strip():
        yield 1, {"text": text}


def _parquet(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                batch.validate(full=True)
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a whole parquet file ({error})") from None


def _arrow(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    """Arrow's file format, or its stream format, which `datasets` writes."""
    import pyarrow
    import pyarrow.ipc

    number = 0
    try:
        with open_bytes(path) as file:
            is_file = file.read(6) == b"ARROW1"
        with pyarrow.memory_map(str(path)) as source:
            reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                batch.validate(full=True)  # broken offsets would read past the end of memory
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a whole arrow file ({error})") from None


def _xlsx(path: Path, remark: Remark) -> Iterator[tuple[int, Row]]:
    """The first sheet; its first line names the columns."""
    openpyxl = require("openpyxl", "data", f"{path}: reading a spreadsheet")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # a broken file fails in any of zipfile, xml and openpyxl
        raise RecipeError(f"{path}: not a whole xlsx file ({error})") from None
    lines = book.worksheets[0].iter_rows(values_only=True)
    header = [str(name) if name is not None else "" for name in next(lines, ())]
    for number, cells in enumerate(lines, 1):
        if any(cell is not None for cell in cells):
            yield number, {name: cell for name, cell in zip(header, cells, strict=False) if name}
    book.close()


KINDS: dict[str, Callable[[Path, Remark], Iterator[tuple[int, Any]]]] = {
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
    "tsv": _tsv,
    "txt": _txt,
    "parquet": _parquet,
    "arrow": _arrow,
    "xlsx": _xlsx,
}
