"""Quotas after rejections: which values have too few accepted rows, and the spare rows that stand in for rejected ones.

A spare has the quota values and the variant of the row it stands in for, and fresh other slots. Its index is that row's
plus a multiple of the number of rows, so that it is the same in every run, whatever was asked before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from llmforge.datagen.ledger import History
from llmforge.datagen.task import Task, TaskMaker


def spares(maker: TaskMaker, tasks: Iterable[Task], history: History) -> list[Task]:
    """A spare for each of the tasks whose row was rejected; rows that nobody answered are asked again instead."""
    return [maker.task(task.index + maker.num_rows) for task in tasks if _rejected(history, task.id)]


def _rejected(history: History, row_id: str) -> bool:
    end = history.row(row_id).end
    return end is not None and end["cause"] is not None and not end["cause"].startswith("teacher:")


def short_of(maker: TaskMaker, history: History) -> dict[str, dict[str, int]]:
    """Slot -> value -> accepted rows it lacks; a value is named by the first column of its table."""
    accepted = [row.end["record"]["slots"] for row in history.rows.values() if row.end and row.end["cause"] is None]
    found: dict[str, dict[str, int]] = {}
    for slot in maker.slots:
        if slot.quota is None or slot.table is None:
            continue
        wanted = Counter(_name(row) for row in slot.table.rows)
        per_value = slot.quota // len(slot.table.rows)
        have = Counter(_name(slots[slot.name]) for slots in accepted)
        lacking = {name: rows * per_value - have[name] for name, rows in wanted.items()}
        found[slot.name] = {name: count for name, count in lacking.items() if count > 0}
    return {name: values for name, values in found.items() if values}


def _name(row: Mapping[str, Any]) -> str:
    return str(next(iter(row.values())))
