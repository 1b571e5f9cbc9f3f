"""The table of a ledger, as text and as JSON, and the comparison with other trainers in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmforge.bench.cells import FORGE
from llmforge.bench.inversions import find_inversions
from llmforge.bench.ledger import Row

HEAD = (
    "workload", "model", "method", "length", "rows", "trainer", "batching", "samples/s", "tokens/s", "superv./s",
    "computed/s", "MiB", "card GiB a/r", "step 1 s", "CPU s", "ready s", "loss", "runs",
)  # fmt: skip
NOTE = """samples/s, tokens/s (of the rows, no padding), supervised and computed ones: steps after the first, medians.
MiB: highest resident memory of the largest process. card: allocated/reserved, a+b for two cards.
step 1, CPU: from the command to the end of the first step. ready: from the command to its beginning."""


def text_table(rows: Sequence[Row]) -> str:
    """Columns under each other; a cell that ran out of memory says OOM."""
    if not rows:
        return "no runs yet"
    lines = [HEAD, *(_columns(row, rows) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:], "", NOTE])


def _columns(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    cell = row.cell
    trainer = FORGE + (f" {cell.words}" if cell.words else "") if cell.side == FORGE else cell.side
    per_step = str(cell.rows) + (f", {cell.epochs} epochs" if cell.epochs > 1 else "")
    named = (
        cell.workload, cell.model, cell.method, str(cell.length), per_step, trainer, cell.batching,
    )  # fmt: skip
    counted = f"{len(row.good)}" + (f" of {len(row.runs)}" if len(row.good) < len(row.runs) else "")
    if row.outcome != "ok":
        said = "OOM" if row.outcome == "oom" else "failed"
        return (*named, said, *("" for _ in range(9)), counted)
    rate, (per_row, supervised) = row.median("samples_per_s"), tokens_per_row(row, rows)
    peak, computed = row.median("peak_bytes"), row.median("computed_per_row")
    losses = row.good[-1]["losses"]
    return (
        *named,
        _number(rate, 3),
        _number(rate and per_row and rate * per_row, 0),
        _number(rate and supervised and rate * supervised, 0),
        _number(rate and computed and rate * computed, 0),
        f"{peak / 2**20:.0f}" if peak else "-",
        _cards(row.good[-1]),
        _number(row.median("first_step_wall_s"), 1),
        _number(row.median("first_step_cpu_s"), 1),
        _number(row.median("ready_wall_s"), 1),
        " ".join("nan" if x is None else f"{x:.4f}" for x in losses[:1] + losses[-1:]),
        counted,
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cards(run: dict[str, Any]) -> str:
    allocated, reserved = run.get("peak_allocated_bytes"), run.get("peak_reserved_bytes")
    if not allocated or not reserved:
        return "-"
    return "/".join("+".join(f"{x / 2**30:.2f}" for x in peaks) for peaks in (allocated, reserved))


def tokens_per_row(row: Row, rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Tokens and supervised tokens of a row of data. Another trainer's run takes them from ours on the same rows."""
    same = [row, *(r for r in rows if r.cell.side == FORGE and row in r.rivals([row]))]
    for source in same:
        if counted := source.median("tokens_per_row"):
            return counted, source.median("supervised_per_row")
    return None, None


def comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each of our rows against each other trainer's row of the same work: ratios of medians, ours over theirs."""
    found = []
    for row in rows:
        if row.cell.side != FORGE or not row.good:
            continue
        for rival in row.rivals(rows):
            if not rival.good:
                continue
            keys = ("samples_per_s", "samples_per_cpu_s", "peak_bytes", "first_step_wall_s", "first_step_cpu_s",
                    "ready_wall_s")  # fmt: skip
            ratios = {key: _ratio(row.median(key), rival.median(key)) for key in keys}
            pairs = [_ratio(a.get("samples_per_s"), b.get("samples_per_s")) for a, b in zip(row.good, rival.good)]  # noqa: B905 - one side may have more runs
            known = [ratio for ratio in pairs if ratio is not None]
            found.append(
                {"cell": row.cell.as_dict(), "against": rival.cell.side, "ratios": ratios}
                | {"samples_per_s_range": [min(known), max(known)] if known else None}
                | {"losses": [row.good[-1]["losses"], rival.good[-1]["losses"]]}
            )
    return found


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def told(comparison: dict[str, Any]) -> str:
    """A comparison as a sentence."""
    cell, ratios, spread = comparison["cell"], comparison["ratios"], comparison["samples_per_s_range"]
    between = f" ({spread[0]:.1f} to {spread[1]:.1f} from run to run)" if spread and spread[0] != spread[1] else ""
    names = {
        "samples_per_cpu_s": "samples per CPU second", "peak_bytes": "peak memory",
        "first_step_wall_s": "first step wall time", "first_step_cpu_s": "first step CPU time",
        "ready_wall_s": "time until the first step begins",
    }  # fmt: skip
    others = [f"{name} x {ratios[key]:.2f}" for key, name in names.items() if ratios[key] is not None]
    rate = (
        "an unknown rate" if ratios["samples_per_s"] is None else f"samples/s x {ratios['samples_per_s']:.2f}{between}"
    )
    what = f"{cell['workload']}, {cell['method']}, length {cell['length']}, {cell['batching']}"
    return f"{what} against {comparison['against']}: {rate}; " + "; ".join(others)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The same as an object: rows with medians and single runs, comparisons, inversions."""
    medians = ("samples_per_s", "samples_per_cpu_s", "peak_bytes", "first_step_wall_s", "first_step_cpu_s",
               "ready_wall_s", "tokens_per_row", "supervised_per_row", "computed_per_row")  # fmt: skip
    shown = []
    for row in rows:
        per_row, supervised = tokens_per_row(row, rows)
        rate = row.median("samples_per_s")
        shown.append(
            asdict(row.cell)
            | {"machine": row.machine, "data": row.data, "outcome": row.outcome}
            | {key: row.median(key) for key in medians}
            | {"tokens_per_s": rate * per_row if rate and per_row else None}
            | {"supervised_tokens_per_s": rate * supervised if rate and supervised else None}
            | {"runs": row.runs}
        )
    return {
        "rows": shown,
        "comparisons": comparisons(rows),
        "inversions": [inversion.text for inversion in find_inversions(rows)],
    }
