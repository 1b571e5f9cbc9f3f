"""The ledger of loads: one JSON line per server, load and round, and rows that gather the rounds of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from llmforge.bench import ledger
from llmforge.bench.serve_stats import percentiles


@dataclass(frozen=True)
class Load:
    """What one server was asked to bear. `level` is a concurrency (closed loop) or requests per second (open loop)."""

    server: str
    models: str  # names that the requests went to in turn
    prompts: str
    digest: str  # of the prompts
    shared: int  # characters in front of every prompt
    num_tokens: int  # asked for
    loop: str
    level: float
    body: str = ""  # further fields of every request, as JSON

    @property
    def work(self) -> tuple:
        """Equal for loads that ask the same of another server."""
        return (self.digest, self.num_tokens, self.loop, self.body)

    @property
    def title(self) -> str:
        return f"c={self.level:g}" if self.loop == "closed" else f"{self.level:g}/s"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LoadRow:
    """All rounds of one load on one machine."""

    load: Load
    machine: str
    runs: list[dict[str, Any]]

    @property
    def good(self) -> list[dict[str, Any]]:
        return [run for run in self.runs if run.get("num_good")]

    def median(self, key: str) -> float | None:
        values = [run[key] for run in self.good if run.get(key) is not None]
        return median(values) if values else None

    def pooled(self, key: str) -> dict[str, float]:
        """Percentiles over the requests of all rounds together."""
        return percentiles([value for run in self.good for value in run[key]])

    @property
    def errors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for run in self.runs:
            for kind, count in run["errors"].items():
                found[kind] = found.get(kind, 0) + count
        return found


def read(path: Path) -> list[dict[str, Any]]:
    """All loads of a ledger; see ledger.read."""
    return ledger.read(path, _load, "load of bench serve")


def rows_of(lines: Iterable[dict[str, Any]]) -> list[LoadRow]:
    """Group the lines; servers in the order of their first line, loads of one server from light to heavy."""
    groups: dict[tuple, LoadRow] = {}
    for line in lines:
        load = _load(line)
        groups.setdefault((load, line["machine"]), LoadRow(load, line["machine"], [])).runs.append(line)
    order = {key: number for number, key in enumerate(dict.fromkeys(_series(row) for row in groups.values()))}
    return sorted(groups.values(), key=lambda row: (order[_series(row)], row.load.level))


def series(rows: Sequence[LoadRow]) -> list[list[LoadRow]]:
    """Rows that differ in their level alone, together."""
    groups: dict[tuple, list[LoadRow]] = {}
    for row in rows:
        groups.setdefault(_series(row), []).append(row)
    return list(groups.values())


def _series(row: LoadRow) -> tuple:
    load = row.load
    return (row.machine, load.digest, load.shared, load.num_tokens, load.loop, load.body, load.server, load.models)


def _load(line: dict[str, Any]) -> Load:
    return Load(**{field.name: line[field.name] for field in fields(Load)})
