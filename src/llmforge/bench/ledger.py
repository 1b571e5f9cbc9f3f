"""The ledger: one JSON line per run ever measured, appended, and the medians taken over its runs."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from llmforge.bench.cells import FORGE, Cell
from llmforge.bench.child import Measured
from llmforge.errors import RecipeError


def machine() -> str:
    """CPU and cores, so that results of two machines in one ledger stay apart."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def record(cell: Cell, seen: Measured, digest: str, round_number: int, results: dict[str, Any]) -> dict[str, Any]:
    """One ledger line. Rates are over the steps after the first; the first one counts as start-up.

    Where rows come several times, they are over all steps, from the moment the training said that it begins: what is
    computed once for later epochs then counts.

    Args:
        results: train_results.json of a Forge run, for its tokens and the peaks of its cards; empty otherwise.
    """
    line: dict[str, Any] = cell.as_dict() | {
        "data": digest, "machine": machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "round": round_number,
        "outcome": seen.outcome, "error": seen.error, "num_steps": len(seen.steps),
        "peak_bytes": seen.peak_bytes, "losses": [entry.get("loss") for entry in seen.log],
    }  # fmt: skip
    cards: dict[str, Any] = {
        key: results[key] for key in ("cards", "peak_allocated_bytes", "peak_reserved_bytes") if key in results
    }
    for theirs, ours in (("vram_allocated", "peak_allocated_bytes"), ("vram_reserved", "peak_reserved_bytes")):
        if given := [entry[theirs] for entry in seen.log if entry.get(theirs)]:
            cards[ours] = [int(max(given) * 2**30)]
    line |= cards
    if seen.outcome != "ok":
        return line
    walls, cpus = [mark.wall_s for mark in seen.steps], [mark.cpu_s for mark in seen.steps]
    begin = seen.ready if cell.epochs > 1 else seen.steps[0]
    counted = len(walls) - (cell.epochs == 1)
    timed, timed_cpu = (walls[-1] - begin.wall_s, cpus[-1] - begin.cpu_s) if begin else (0.0, 0.0)
    line |= {
        "first_step_wall_s": walls[0], "first_step_cpu_s": cpus[0], "wall_s": seen.end.wall_s, "cpu_s": seen.end.cpu_s,
        "step_s": [round(b - a, 3) for a, b in pairwise(walls)],
    }  # fmt: skip
    if seen.ready:
        line |= {"ready_wall_s": seen.ready.wall_s, "ready_cpu_s": seen.ready.cpu_s}
    if timed > 0:
        line["samples_per_s"] = cell.rows * counted / timed
    if timed_cpu > 0:
        line["samples_per_cpu_s"] = cell.rows * counted / timed_cpu
    for key, name in (("tokens", "tokens"), ("supervised", "supervised_tokens"), ("computed", "computed_tokens")):
        if name in results:
            line[f"{key}_per_row"] = results[name] / (cell.rows * len(walls))
    return line


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a run; a line is written whole, so that a ledger survives an end at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(rounded, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(
    path: Path, check: Callable[[dict[str, Any]], object] | None = None, what: str = "run of a benchmark"
) -> list[dict[str, Any]]:
    """All lines of a ledger; none when there is no file yet.

    Args:
        check: raises KeyError, TypeError or ValueError for a line that is none of `what`; None for runs of training.

    Raises:
        RecipeError: a line is none; names file and line.
    """
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            (check or _cell)(line)
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"--ledger: {path}, line {number} is no {what} ({error!r})") from None
        lines.append(line)
    return lines


def _cell(line: dict[str, Any]) -> Cell:
    return Cell(**{"epochs": 1} | {field.name: line[field.name] for field in fields(Cell) if field.name in line})


@dataclass(frozen=True)
class Row:
    """A row of the table: a cell, on one machine and data set, with medians of its runs that ended well."""

    cell: Cell
    machine: str
    data: str
    runs: list[dict[str, Any]]

    @property
    def good(self) -> list[dict[str, Any]]:
        return [run for run in self.runs if run["outcome"] == "ok"]

    @property
    def outcome(self) -> str:
        """ok, when one run is; else what the last one was."""
        return "ok" if self.good else self.runs[-1]["outcome"]

    def median(self, key: str) -> float | None:
        values = [run[key] for run in self.good if run.get(key) is not None]
        return median(values) if values else None

    def rivals(self, rows: Iterable[Row]) -> list[Row]:
        """Rows of other trainers that did the same work on the same data and machine."""
        mine = (self.cell.opponent_key, self.machine, self.data)
        return [r for r in rows if r.cell.side != FORGE and (r.cell.opponent_key, r.machine, r.data) == mine]


def rows_of(lines: Iterable[dict[str, Any]]) -> list[Row]:
    """Group the runs of a ledger; rows of the same work stand together, ours first, in the order of their first run."""
    groups: dict[tuple, Row] = {}
    works: dict[tuple, int] = {}
    for line in lines:
        cell = _cell(line)
        key = (cell, line["machine"], line["data"])
        groups.setdefault(key, Row(cell, line["machine"], line["data"], [])).runs.append(line)
        works.setdefault((cell.opponent_key, *key[1:]), len(works))
    order = {key: works[key[0].opponent_key, *key[1:]] for key in groups}
    return [groups[key] for key in sorted(groups, key=lambda key: (order[key], key[0].side != FORGE))]
