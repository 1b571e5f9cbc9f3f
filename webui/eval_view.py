"""Predictions before and after as HTML: scores with intervals, rows by how they moved, one row with both answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.eval.compare import Change, Comparison, Pair, values_of
from llmforge.webui.charts import before_after
from llmforge.webui.markup import Safe, tag
from llmforge.webui.review_view import marked
from llmforge.webui.words import Words

RESULTS = "predict_results.json"
SHOWN = 50  # rows of the list
CHANGES: tuple[Change, ...] = ("worse", "better", "same", "unscored")
FIRST = 8  # metrics in the chart


def show_scores(words: Words, found: Comparison, before: str, after: str) -> Safe:
    """The metrics of both files over the rows they share, and whether a difference is more than chance."""
    differences = found.differences()
    lines = []
    for one in differences:
        kind = "same" if not one.sure else "better" if one.after > one.before else "worse"
        gap = words("eval.gap", gap=f"{one.after - one.before:+.4g}", low=f"{one.low:+.4g}", high=f"{one.high:+.4g}")
        lines.append(
            tag(
                "tr",
                tag("td", one.metric, class_="data"),
                tag("td", f"{one.before:.4g}", class_="number"),
                tag("td", f"{one.after:.4g}", class_="number"),
                tag("td", gap),
                tag("td", words(f"eval.verdict_{kind}"), class_={"better": "good", "worse": "bad"}.get(kind, "calm")),
                tag("td", f"{one.rows:,}", class_="number"),
            )
        )
    names = ("metric", "before", "after", "gap", "verdict", "rows")
    numbers = ("before", "after", "rows")
    head = tag(
        "tr",
        *(
            tag("th", words(f"eval.head_{name}"), scope="col", class_="number" if name in numbers else None)
            for name in names
        ),
    )
    bars = [(one.metric, one.before, one.after) for one in differences[:FIRST]]
    label = words("eval.chart", before=before, after=after)
    sides = (words("eval.before_short"), words("eval.after_short"))
    return tag(
        "div",
        *(tag("p", note, class_="warn") for note in found.notes),
        before_after(bars, *sides, label) if bars else tag("p", words("eval.no_scores"), class_="calm"),
        tag("div", tag("table", tag("thead", head), tag("tbody", *lines)), class_="scroll", tabindex="0"),
        tag("p", words("eval.interval"), class_="calm"),
        class_="scores",
    )


def show_tables(words: Words, path: Path) -> Safe:
    """Tables that predict wrote beside a file, such as labels and the confusion matrix."""
    try:
        told: Mapping[str, Any] = json.loads((path.parent / RESULTS).read_text(encoding="utf-8"))
        tables = {name: table for name, table in told.get("tables", {}).items() if len(table["columns"]) <= 30}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return Safe("")
    shown = []
    for name, table in tables.items():
        head = tag("tr", *(tag("th", column) for column in table["columns"]))
        rows = [tag("tr", *(tag("td", _cell(cell)) for cell in row)) for row in table["rows"][:100]]
        sheet = tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll", tabindex="0")
        shown.append(tag("details", tag("summary", words("eval.table", name=name)), sheet))
    return tag("div", *shown)


def show_rows(words: Words, found: Comparison, metric: str, kind: str, chosen: int) -> Safe:
    """The rows that moved in one way, as buttons."""
    counts = found.counts(metric)
    chips = [tag("span", f"{words(f'eval.rows_{name}')} {counts[name]:,}", class_=f"chip {name}") for name in CHANGES]
    rows = [pair for pair in found.pairs if kind == "all" or pair.change(metric) == kind]
    lines = [
        tag(
            "li",
            tag(
                "button",
                tag("span", f"{pair.row}", class_="sign"),
                tag("span", " ".join(_ends(pair.prompt).split()), class_="title"),
                type="button",
                data_pick=str(pair.row),
                aria_current="true" if pair.row == chosen else None,
            ),
        )
        for pair in rows[:SHOWN]
    ]
    more = tag("p", words("eval.first_rows", n=SHOWN, all=len(rows)), class_="calm") if len(rows) > SHOWN else None
    shown = tag("ol", *lines) if lines else tag("p", words("eval.none"), class_="calm")
    return tag("nav", tag("p", *chips), more, shown, class_="queue", aria_label=words("eval.rows"))


def show_pair(words: Words, pair: Pair) -> Safe:
    """One row: what was asked, what was wanted, and both answers with what differs."""
    lines = []
    one, two = values_of(pair.before), values_of(pair.after)
    for name in dict.fromkeys([*one, *two]):
        cells = (tag("td", f"{values[name]:.4g}" if name in values else "–", class_="number") for values in (one, two))
        lines.append(tag("tr", tag("td", name, class_="data"), *cells))
    head = tag("tr", *(tag("th", words(f"eval.head_{name}")) for name in ("metric", "before", "after")))
    wanted = tag("section", tag("h3", words("eval.label")), tag("p", pair.label, class_="data")) if pair.label else None
    return tag(
        "article",
        tag("h2", words("data.row", n=pair.row)),
        tag("section", tag("h3", words("eval.prompt")), tag("p", pair.prompt, class_="data")),
        wanted,
        tag(
            "div",
            tag("section", tag("h3", words("eval.before_short")), tag("p", pair.before.predict, class_="data")),
            tag("section", tag("h3", words("eval.after_short")), tag("p", pair.after.predict, class_="data")),
            class_="talk columns-2",
        ),
        tag(
            "details",
            tag("summary", words("eval.differs")),
            tag("pre", *marked(pair.before.predict, pair.after.predict), class_="diff"),
        ),
        tag("table", tag("thead", head), tag("tbody", *lines)) if lines else None,
        class_="record",
    )


def _ends(text: str) -> str:
    """The end of a prompt, which tells rows apart when they begin with the same instruction."""
    return text if len(text) <= 160 else f"… {text[-150:]}"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
