"""Tables that slots are drawn from: csv, tsv, xlsx, jsonl, parquet, a text file, or the work folder of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.data.files import kind_of, read_rows
from llmforge.errors import RecipeError, nearest
from llmforge.runs import sha256_file


@dataclass(frozen=True)
class Table:
    """Rows with the same columns; `digest` is the sha256 of the bytes they came from."""

    path: str
    rows: tuple[dict[str, Any], ...]
    digest: str

    def columns(self, names: Sequence[str]) -> Table:
        """The same rows with these columns only.

        Raises:
            RecipeError: a column that is missing; lists those that are there.
        """
        there = list(self.rows[0])
        for name in names:
            if name not in there:
                raise RecipeError(f"{self.path}: no column {name!r}.{nearest(name, there)} Present: {', '.join(there)}")
        return Table(self.path, tuple({name: row[name] for name in names} for row in self.rows), self.digest)


def read_table(path: Path) -> Table:
    """Read a table; numbers in text files become numbers, so that lon and lat can be computed with.

    Raises:
        RecipeError: the file cannot be read, is empty, or its rows are not like each other.
    """
    if path.is_dir():
        return _accepted_rows(path)
    if kind_of(path) is None:
        raise RecipeError(f"{path}: not a table; expected csv, tsv, xlsx, jsonl, json, parquet or txt")
    rows = []
    for number, row in read_rows(path, remark=lambda text: None):
        if not isinstance(row, dict):
            raise RecipeError(f"{path} row {number}: expected columns, got {type(row).__name__}")
        rows.append({str(name): _number(value) for name, value in row.items()})
        if missing := [name for name in rows[0] if rows[-1].get(name) is None]:
            raise RecipeError(f"{path} row {number}: nothing in column {', '.join(missing)}")
    if not rows:
        raise RecipeError(f"{path}: the table has no rows")
    return Table(str(path), tuple(rows), sha256_file(path))


def _accepted_rows(folder: Path) -> Table:
    """The accepted rows of another data set: what was generated there can be a slot here."""
    files = sorted((folder / "ok").glob("*.json"))
    if not files:
        raise RecipeError(f"{folder}: no accepted rows (ok/*.json) in this folder")
    rows = sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda row: row["index"])
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Table(str(folder), tuple(rows), digest)


def _number(value: Any) -> Any:
    """A number written as text, if writing it again gives the same text: "0012" and "1e5" stay what they are."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if str(number) == value or (kind is float and value.rstrip("0") == str(number).rstrip("0")):
            return number
    return value
