"""A review as a table for a spreadsheet or another tool, and back: CSV or JSONL, one line a row.

A cell that a spreadsheet would run as a formula (=, +, -, @, tab, return at its start) gets an apostrophe before it,
which is taken off again when the table comes back.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from llmforge.data.files import kind_of, read_rows
from llmforge.datagen.patches import Patch, State, append_patches, base_hash
from llmforge.datagen.pointer import value_at
from llmforge.datagen.review import Item, Review
from llmforge.errors import RecipeError
from llmforge.metrics.json_text import MISSING, canonical_json
from llmforge.runs import atomic_write

OWN = ("id", "state", "author", "note", "base")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
KINDS = ("csv", "jsonl")


def export_review(review: Review, path: Path) -> int:
    """Write all rows with their states and reviewed fields; returns how many.

    Raises:
        RecipeError: neither .csv nor .jsonl.
    """
    _check_kind(path)
    lines = [_line(item, review.fields) for item in review.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind_of(path) == "jsonl":
        atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return len(lines)
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, [*OWN, *review.fields], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: guarded(_cell(value)) for key, value in line.items()} for line in lines)
    atomic_write(path, b"\xef\xbb\xbf" + sheet.getvalue().encode())  # Excel takes UTF-8 for UTF-8 only with a mark
    return len(lines)


def import_review(review: Review, path: Path, author: str) -> dict[str, int]:
    """Take over what was changed in an exported table: other values are edits, another state is a decision.

    A row whose base hash is no longer that of the row here is left out and counted as "outdated"; edits of a row that
    is rejected or skipped are "edits_not_taken". Nothing is taken over when anything in the table is wrong.

    Raises:
        RecipeError: a missing column, an unknown id or state, a cell that is no JSON where the field is no text.
    """
    _check_kind(path)
    items = {item.id: item for item in review.items()}
    patches: list[Patch] = []
    counts = {"rows": 0, "unchanged": 0, "decided": 0, "edited": 0, "outdated": 0, "edits_not_taken": 0}
    for number, row in read_rows(path, remark=lambda text: None):
        where = f"{path}: row {number}"
        if not isinstance(row, dict) or "id" not in row or "state" not in row:
            raise RecipeError(f"{where}: expected the columns id and state of `forge-cli data review --export`")
        if kind_of(path) == "csv":
            row = {key: unguarded(value or "") for key, value in row.items()}
        counts["rows"] += 1
        id = str(row["id"])
        if id not in items:
            raise RecipeError(f"{where}: no row {id!r} in this review")
        item = items[id]
        if row.get("base") and row["base"] != base_hash(item.made):
            counts["outdated"] += 1
            continue
        patch, edits_lost = _patch(review, item, row, author, where)
        counts["edits_not_taken"] += edits_lost
        if patch is None:
            counts["unchanged"] += 1
            continue
        counts["edited" if patch.state == "edited" else "decided"] += 1
        patches.append(patch)
    append_patches(review.folder, patches)
    return counts


def guarded(cell: str) -> str:
    """A cell no spreadsheet runs."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def unguarded(cell: str) -> str:
    """The cell as it was before `guarded`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _patch(review: Review, item: Item, row: dict[str, Any], author: str, where: str) -> tuple[Patch | None, bool]:
    """The decision a line of the table holds, None when it says what is known already; and whether edits were lost."""
    new: dict[str, Any] = {}
    for place in review.fields:
        old = value_at(item.reviewed.row, place)
        if place not in row or old is MISSING:
            continue
        value = row[place]
        if not isinstance(old, str) and isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise RecipeError(f"{where}: {place}: not valid JSON ({error})") from None
        if isinstance(old, str) and isinstance(value, str) and "\n" in old:
            value = value.replace("\r\n", "\n")  # spreadsheets change line ends inside cells
        if canonical_json(value) != canonical_json(old):
            new[place] = value
    state: State = row["state"] or "pending"
    note = row.get("note") or ""
    lost = bool(new) and state in ("rejected", "skipped")
    if lost:
        new = {}  # a row that is thrown away needs no edits
    elif new:
        state = "edited"
    if not new and state == item.state and note == item.reviewed.note:
        return None, lost
    try:
        return review.decision(item, state, author, new, note), lost
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _line(item: Item, fields: list[str]) -> dict[str, Any]:
    reviewed = item.reviewed
    own = (item.id, item.state, reviewed.author, reviewed.note, base_hash(item.made))
    values = {place: value_at(reviewed.row, place) for place in fields}
    shown = {place: None if value is MISSING else value for place, value in values.items()}
    return {**dict(zip(OWN, own, strict=True)), **shown}


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_kind(path: Path) -> None:
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise RecipeError(f"review: {path}: expected a .csv or .jsonl file")
