"""`forge-cli predict R`: generate for a test set, score, print the scores."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmforge.config.load import load_recipe
from llmforge.config.said import say_loading
from llmforge.eval.predict import RESULTS, PredictResult, predict
from llmforge.metrics.scores import Table

WIDEST = 12  # columns; a larger confusion matrix is only in the file
MOST_ROWS = 20


def main(words: Sequence[str]) -> int:
    """Predict as the recipe says; `--json` prints predict_results.json instead of a table.

    Interrupted by SIGINT or SIGTERM it ends with 130 or 143; the same command goes on with the rows that are missing.
    """
    as_json = "--json" in words
    recipe = load_recipe([word for word in words if word != "--json"], "predict")
    for note in recipe.notes:
        print(f"note: {note}", file=sys.stderr)
    say_loading(recipe)
    try:
        with terminated_as_interrupt():
            result = predict(recipe)
    except KeyboardInterrupt as interrupt:
        print("\nforge-cli: interrupted; the rows so far are kept, the same command goes on", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    print(json.dumps(result.as_dict(), ensure_ascii=False) if as_json else summary(result))
    return 0


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt(SIGTERM), so that files are closed on the way out."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(result: PredictResult) -> str:
    """The scores, the tables that fit a screen, the rows left out, and where the files are."""
    lines = [f"{name.removeprefix('predict_'):<24} {_cell(value)}" for name, value in result.scores.items()]
    for name, table in result.tables.items():
        lines += ["", name]
        if len(table.columns) > WIDEST:
            lines.append(f"  {len(table.columns)} columns: see {result.path.parent / RESULTS}")
            continue
        lines += [f"  {line}" for line in aligned(Table(table.columns, table.rows[:MOST_ROWS]))]
        if len(table.rows) > MOST_ROWS:
            lines.append(f"  and {len(table.rows) - MOST_ROWS} more in {result.path.parent / RESULTS}")
    lines += ["", *result.notes]
    lines += [f"left out: {source}: {reason}" for source, reason in result.left_out[:MOST_ROWS]]
    if len(result.left_out) > MOST_ROWS:
        lines.append(f"left out: {len(result.left_out) - MOST_ROWS} more in {result.path.parent / RESULTS}")
    return "\n".join([*lines, f"predictions: {result.path}", f"scores: {result.path.parent / RESULTS}"])


def aligned(table: Table) -> list[str]:
    """A table in columns: text to the left, numbers to the right; a Chinese character takes two places."""
    cells = [table.columns, *([_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(table.columns))]
    numeric = [all(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.columns))]
    return ["  ".join(map(_pad, row, widths, numeric)).rstrip() for row in cells]


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(text: str) -> int:
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
