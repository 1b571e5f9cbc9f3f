"""Curves out of logs: read as they grow, thinned without losing a peak."""

import json
import math

from llmforge.webui.curve_chart import Line, curves_chart, ticks
from llmforge.webui.curves import Curve, Curves, smooth, thin


def line(step: int, **values: float) -> str:
    return json.dumps({"current_steps": step, "total_steps": 100, "percentage": 1.0, **values}) + "\n"


def test_a_growing_log_is_read_on_and_a_new_one_from_its_start(tmp_path):
    log = tmp_path / "trainer_log.jsonl"
    curve = Curves().of(log)
    assert curve.series == {}
    log.write_text(line(1, loss=3.0, lr=1e-4) + line(2, loss=2.0) + '{"current_steps": 3, "lo')
    curve.read()
    assert curve.series["loss"] == [(1, 3.0), (2, 2.0)]
    assert curve.last["loss"] == 2.0
    with open(log, "a") as file:
        file.write('ss": 1.5}\n' + line(4, eval_loss=1.25))
    curve.read()
    assert curve.series["loss"][-1] == (3, 1.5)
    assert curve.best() == 1.25
    log.write_text(line(1, loss=9.0) + line(2, loss=8.0) + line(3, loss=7.0) + line(4, loss=6.0) + line(5, loss=5.0))
    curve.read()
    assert curve.series == {"loss": [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0), (5, 5.0)]}


def test_lines_that_are_no_log_are_left_out(tmp_path):
    (tmp_path / "l").write_text('[1]\nnonsense\n{"loss": 1}\n' + line(1, loss=None) + line(2, loss=1.0))
    curve = Curve(tmp_path / "l")
    curve.read()
    assert curve.series == {"loss": [(2, 1.0)]}


def test_a_hundred_thousand_points_become_two_thousand_with_both_extremes():
    points = [(float(step), math.sin(step / 1000)) for step in range(100_000)]
    points[54_321], points[12_345] = (54_321.0, 99.0), (12_345.0, -99.0)
    kept = thin(points, 2000)
    assert len(kept) <= 2000
    assert (54_321.0, 99.0) in kept
    assert (12_345.0, -99.0) in kept
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert thin(points[:7], 7) == points[:7]


def test_smoothing_starts_at_the_first_value_and_0_changes_nothing():
    points = [(1.0, 4.0), (2.0, 2.0)]
    assert smooth(points, 0) == points
    assert smooth(points, 0.5) == [(1.0, 4.0), (2.0, (0.5 * 0.5 * 4 + 0.5 * 2) / 0.75)]


def test_round_numbers_stand_at_the_axes():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.31, 0.94) == [0.4, 0.6, 0.8]
    assert ticks(5, 5) == [5]


def test_a_chart_tells_its_runs_apart_and_escapes_their_names():
    lines = [Line(f"<img onerror=x>{n}", [(0, 1.0), (1, math.nan), (2, 3.0)], [(1, 2.0)]) for n in range(10)]
    chart = curves_chart(lines, label="loss", empty="nothing", dots_label="eval")
    assert "<img" not in chart
    assert chart.count("<polyline") == 10
    assert 'class="c1 dash1"' in chart
    assert "nan" not in chart
    assert "nothing" in curves_chart([Line("a", [])], label="loss", empty="nothing", dots_label="eval")
