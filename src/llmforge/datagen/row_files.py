"""Rows on their way through a step: read from any data file with their places, written as JSON lines, and reported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmforge.data.charset import detect
from llmforge.data.example import RowRef, RowReport
from llmforge.data.files import KINDS, data_files, kind_of, read_rows
from llmforge.errors import RecipeError, RunError
from llmforge.runs import atomic_write

Row = dict[str, Any]
SHOWN = 5  # rows named for each reason in the text a person reads; --json names all
TEXT_KINDS = ("csv", "tsv", "txt", "json", "jsonl")


def read_files(
    paths: Sequence[Path], report: RowReport, *, kind: str = "auto", encoding: str = "auto"
) -> Iterator[tuple[RowRef, Row]]:
    """Rows of all files with their places; a row that is no object is rejected in the report.

    Raises:
        RecipeError: a file cannot be read, or there is none.
    """
    if not paths:
        raise RecipeError("no data file is named")
    for path in (file for each in paths for file in (data_files(each) if kind == "auto" or each.is_dir() else [each])):
        fix = partial(report.fix, RowRef(str(path), 0))
        own = kind_of(path) if kind == "auto" else kind
        if encoding != "auto" and own in TEXT_KINDS:
            _compare_encoding(path, encoding, report)
        rows = read_rows(path, fix) if kind in ("auto", kind_of(path)) else KINDS[kind](path, fix)
        for number, row in rows:
            report.rows_in += 1
            source = RowRef(str(path), number)
            if isinstance(row, dict):
                yield source, row
            else:
                report.reject(source, f"the row is {type(row).__name__}, not an object")


def _compare_encoding(path: Path, said: str, report: RowReport) -> None:
    found = detect(path)[0]
    if found != said and not {found, said} <= {"utf-8", "utf-8-sig"}:
        report.fix(RowRef(str(path), 0), f"encoding: {said} was said, {found} is what its bytes are; read as {found}")


def write_jsonl(path: Path, rows: Iterable[Any], *, ensure_ascii: bool = False) -> None:
    """One JSON value a line, ending in \\n whatever the system; the file appears whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, "".join(json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows))
    except UnicodeEncodeError as error:
        raise RecipeError(f"{path}: a row holds half a character ({error.reason}); correct the source") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; what was there before is unchanged") from None


def told(report: RowReport) -> str:
    """A report for people: counts, then each reason with the first rows it met."""
    lines = [f"{report.name}: {report.rows_in} rows in, {report.rows_out} out, {len(report.rejected)} left out"]
    for word, items in (("left out", report.rejected), ("changed", report.fixed)):
        places: dict[str, list[RowRef]] = {}
        for source, reason in items:
            places.setdefault(reason, []).append(source)
        for reason, sources in sorted(places.items(), key=lambda item: -len(item[1])):
            named = ", ".join(str(s.row) if s.row else s.file for s in sources[:SHOWN])
            more = f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else ""
            lines.append(f"  {word}: {len(sources)} x {reason} (row {named}{more})")
    return "\n".join([*lines, *(f"  note: {note}" for note in report.notes)])


def texts_of(row: Any) -> list[str]:
    """All texts of a row in their order, ids and roles left out."""
    if isinstance(row, str):
        return [row]
    if isinstance(row, list):
        return [text for item in row for text in texts_of(item)]
    if isinstance(row, dict):
        return [text for key, value in row.items() if key not in ("id", "role", "from") for text in texts_of(value)]
    return []


def compared_text(row: Row, field: str) -> str:
    """What two rows are compared by: the fields joined by + in `field`, or all texts of the row.

    Raises:
        RecipeError: the row has none of the fields.
    """
    if not field:
        return "\n".join(texts_of(row))
    names = [name.strip() for name in field.split("+")]
    if not any(name in row for name in names):
        raise RecipeError(f"field: no row field {field!r}; a row has {', '.join(row)}")
    return "\n".join(text for name in names for text in texts_of(row.get(name)))


def asked_text(row: Row) -> str:
    """What the user says in a row: the user's turns, or instruction and input; all texts where it has neither."""
    for key in ("conversations", "messages", "conversation"):
        if isinstance(turns := row.get(key), list):
            users = [t for t in turns if isinstance(t, dict) and t.get("role", t.get("from")) in ("user", "human")]
            return "\n".join(text for turn in users for text in texts_of(turn))
    asked = [row[key] for key in ("instruction", "input", "prompt", "question") if isinstance(row.get(key), str)]
    return "\n".join(asked) if asked else compared_text(row, "")
