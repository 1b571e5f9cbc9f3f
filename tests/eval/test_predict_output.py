"""What predict shows: progress on stderr, tables on stdout."""

from __future__ import annotations

import io
from pathlib import Path

from llmforge.data.example import RowRef
from llmforge.eval.command import aligned, summary
from llmforge.eval.predict import PredictResult
from llmforge.eval.progress import Progress, clock
from llmforge.metrics.scores import Table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_plain_lines_when_it_is_no_terminal():
    out = io.StringIO()
    progress = Progress(3, "rows", out)
    for _ in range(3):
        progress.advance()
    assert out.getvalue().startswith("3/3 rows, ")
    assert out.getvalue().endswith("/s, 0:00 left\n")
    assert "\r" not in out.getvalue()


def test_progress_is_one_moving_line_in_a_terminal():
    out = Terminal()
    progress = Progress(2, "rows", out)
    progress.shown = -1.0
    progress.advance()
    progress.advance()
    assert out.getvalue().count("\r") == 2
    assert out.getvalue().endswith("left\n")


def test_clock_counts_hours_only_when_there_are_some():
    assert [clock(7), clock(754), clock(3723.4)] == ["0:07", "12:34", "1:02:03"]


def test_columns_line_up_although_chinese_is_wide():
    lines = aligned(Table(["label", "rows"], [["火灾", 5], ["flood", 12]]))
    assert lines == ["label  rows", "火灾      5", "flood    12"]


def test_the_summary_names_rows_left_out_and_large_tables():
    wide = Table([str(i) for i in range(20)], [])
    path = Path("runs/x/generated_predictions.jsonl")
    result = PredictResult(
        path, {"predict_exact_match": 0.5}, {"confusion": wide}, [(RowRef("data/a.json", 3), "too long")], ["a note"]
    )
    text = summary(result)
    assert "exact_match              0.5000" in text
    assert "20 columns: see runs/x/predict_results.json" in text
    assert "left out: data/a.json row 3: too long" in text
    assert "a note" in text
