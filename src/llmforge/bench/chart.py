"""The chart of a ledger: samples per second and peak memory, a bar for each row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmforge.bench.cells import FORGE
from llmforge.bench.ledger import Row
from llmforge.errors import require

OURS, THEIRS = "#2f6f9f", "#b0b0b0"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows; one that ran out of memory has its place and the word instead of a bar.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    require("matplotlib", "plot", "--chart").use("Agg")
    from matplotlib.figure import Figure

    names = [_name(row) for row in rows]
    colours = [OURS if row.cell.side == FORGE else THEIRS for row in rows]
    places = list(range(len(rows)))[::-1]  # the first row on top
    figure = Figure(figsize=(10, 1.2 + 0.4 * len(rows)), layout="constrained")
    for axes, key, title, scale, form in zip(
        figure.subplots(1, 2, sharey=True), ("samples_per_s", "peak_bytes"), ("samples/s", "peak memory, MiB"),
        (1, 2**20), ("{:.2f}", "{:.0f}"), strict=True,
    ):  # fmt: skip
        values = [(row.median(key) or 0) / scale for row in rows]
        axes.barh(places, values, color=colours)
        for place, value, row in zip(places, values, rows, strict=True):
            shown = form.format(value) if row.good else "OOM" if row.outcome == "oom" else "failed"
            axes.text(value, place, f" {shown}", va="center", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(places, names, fontsize=8)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _name(row: Row) -> str:
    cell = row.cell
    how = " ".join(x for x in (cell.batching, cell.words) if x) if cell.side == FORGE else cell.side
    return f"{cell.workload} {cell.method} {cell.length}, {cell.rows} rows: {how}"
