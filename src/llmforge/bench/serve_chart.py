"""The chart of a ledger of loads: throughput and latency over concurrency, a line per server, the knee marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmforge.bench.serve_ledger import LoadRow, series
from llmforge.bench.serve_stats import knee
from llmforge.errors import require


def draw(rows: Sequence[LoadRow], path: Path) -> None:
    """Draw the closed loops: requests/s and output tokens/s, median latency with its span up to the longest.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    require("matplotlib", "plot", "--chart").use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("requests/s (ring: knee)", "output tokens/s", "latency, s: TP50, and up to TP999 or the longest")
    levels_drawn: set[float] = set()
    for number, group in enumerate(series([row for row in rows if row.load.loop == "closed" and row.good])):
        levels = [row.load.level for row in group]
        levels_drawn.update(levels)
        rates = [row.median("req_per_s") or 0.0 for row in group]
        colour, load = f"C{number % 10}", group[0].load
        name = load.server + (f", {load.shared} shared" if load.shared else "")
        panels[0].plot(levels, rates, "o-", color=colour, label=name)
        if (at := knee(list(zip(levels, rates, strict=True)))) is not None:
            panels[0].plot(at, rates[levels.index(at)], "o", ms=13, mfc="none", color=colour)
        panels[1].plot(levels, [row.median("tokens_per_s") for row in group], "o-", color=colour)
        latencies = [row.pooled("latencies_s") for row in group]
        panels[2].plot(levels, [latency["tp50"] for latency in latencies], "o-", color=colour)
        top = [latency.get("tp999", latency["max"]) for latency in latencies]
        panels[2].fill_between(levels, [latency["tp50"] for latency in latencies], top, color=colour, alpha=0.15)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(levels_drawn), [f"{level:g}" for level in sorted(levels_drawn)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("concurrency")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].set_yscale("log")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
