"""Several files as one: every row once, ids that clash told, nothing lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from llmforge.data.example import RowRef, RowReport
from llmforge.datagen.row_files import Row
from llmforge.metrics.json_text import canonical_json


def merge_rows(rows: Iterable[tuple[RowRef, Row]], report: RowReport) -> list[Row]:
    """Rows in the order of the files; equal rows once. Rows with the id of another row get "<id>_<number>"."""
    seen: dict[str, RowRef] = {}
    ids: set[str] = set()
    kept: list[Row] = []
    shapes: dict[tuple[str, ...], str] = {}
    for source, row in rows:
        text = canonical_json(row)
        if text in seen:
            report.reject(source, f"equal to {seen[text]}")
            continue
        seen[text] = source
        shapes.setdefault(tuple(sorted(row)), source.file)
        if (name := row.get("id")) is not None:
            if str(name) in ids:
                new = next(f"{name}_{i}" for i in itertools.count(2) if f"{name}_{i}" not in ids)
                report.fix(source, f"id {name} stands twice; this one is called {new}")
                row = {**row, "id": new}
            ids.add(str(row["id"]))
        kept.append(row)
    if len(shapes) > 1:
        listed = "; ".join(f"{', '.join(columns)} ({file})" for columns, file in shapes.items())
        report.notes.append(f"rows have {len(shapes)} sets of columns: {listed}")
    report.rows_out = len(kept)
    return kept
