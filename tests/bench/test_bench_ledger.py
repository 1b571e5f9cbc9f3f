"""The ledger gathers runs of many days; the table shows medians, comparisons and what cannot be right."""

import json

import pytest

from llmforge.bench import ledger
from llmforge.bench.cells import Cell
from llmforge.bench.chart import draw
from llmforge.bench.child import Mark, Measured
from llmforge.bench.inversions import find_inversions
from llmforge.bench.table import as_json, comparisons, text_table, told
from llmforge.errors import RecipeError

CELL = Cell("classify", "tiny", "lora", 512, "forge", "tree", rows=32, batch=4)
PEER = Cell("classify", "tiny", "lora", 512, "other-cli", "its own", rows=32, batch=4)


def run(cell=CELL, outcome="ok", step_s=4.0, peak_mib=1000, results=None):
    """A ledger line of a run of three steps, the first one after 10 s of wall and 20 s of CPU time."""
    marks = [Mark(10 + step_s * n, 20 + 2 * step_s * n) for n in range(3)]
    seen = Measured(outcome, "", Mark(6, 9), marks, [{"loss": 3 - n} for n in range(3)], Mark(30, 50), peak_mib * 2**20)
    return ledger.record(cell, seen, "d1", 1, results or {})


def test_rates_leave_the_first_step_out():
    line = run(step_s=4.0, results={"tokens": 96 * 400, "supervised_tokens": 96 * 30, "computed_tokens": 96 * 100})
    assert line["samples_per_s"] == 32 * 2 / 8
    assert line["samples_per_cpu_s"] == 32 * 2 / 16
    assert (line["first_step_wall_s"], line["first_step_cpu_s"], line["ready_wall_s"]) == (10, 20, 6)
    assert (line["tokens_per_row"], line["supervised_per_row"], line["computed_per_row"]) == (400, 30, 100)
    assert line["losses"] == [3, 2, 1]


def test_runs_appended_on_different_days_give_one_row_with_their_median(tmp_path):
    path = tmp_path / "new/l.jsonl"
    for step_s in (4.0, 8.0, 16.0):
        ledger.append(path, run(step_s=step_s))
    (row,) = ledger.rows_of(ledger.read(path))
    assert row.median("samples_per_s") == 8.0 / 2
    assert len(row.runs) == 3


def test_other_data_and_other_machines_are_other_rows():
    assert len(ledger.rows_of([run(), run() | {"data": "d2"}, run() | {"machine": "another"}])) == 3


def test_a_broken_ledger_names_file_and_line(tmp_path):
    (tmp_path / "l.jsonl").write_text(json.dumps(run()) + '\n{"workload": "classify"}\n')
    with pytest.raises(RecipeError, match=r"l\.jsonl, line 2 is no run of a benchmark"):
        ledger.read(tmp_path / "l.jsonl")


def test_out_of_memory_stands_in_the_table_and_takes_no_part_in_medians():
    rows = ledger.rows_of([run(outcome="oom"), run(PEER)])
    lines = text_table(rows).splitlines()
    assert " OOM " in lines[2]
    assert lines[2].endswith("0 of 1")
    assert as_json(rows)["rows"][0]["outcome"] == "oom"
    assert comparisons(rows) == []


def test_another_trainer_is_compared_on_the_same_work():
    rows = ledger.rows_of([run(step_s=4), run(PEER, step_s=40, peak_mib=4000), run(step_s=5), run(PEER, step_s=40)])
    (comparison,) = comparisons(rows)
    assert comparison["ratios"]["samples_per_s"] == pytest.approx((32 / 4 + 32 / 5) / 2 / (32 / 40))
    assert comparison["samples_per_s_range"] == pytest.approx([8, 10])
    assert comparison["ratios"]["peak_bytes"] == pytest.approx(1000 / 2500)
    assert comparison["ratios"]["first_step_wall_s"] == 1
    assert "tree against other-cli: samples/s x 9.00 (8.0 to 10.0 from run to run)" in told(comparison)


def test_another_trainer_s_tokens_are_those_of_the_same_rows():
    results = {"tokens": 96 * 400, "supervised_tokens": 96 * 30, "computed_tokens": 96 * 100}
    peer = as_json(ledger.rows_of([run(results=results), run(PEER, step_s=40)]))["rows"][1]
    assert peer["tokens_per_s"] == pytest.approx(0.8 * 400)
    assert peer["supervised_tokens_per_s"] == pytest.approx(0.8 * 30)


def test_two_cards_are_shown_as_a_plus_b():
    line = run(results={"peak_allocated_bytes": [7 * 2**30, 2**30], "peak_reserved_bytes": [8 * 2**30, 2 * 2**30]})
    assert " 7.00+1.00/8.00+2.00 " in text_table(ledger.rows_of([line]))


def long(**changes):
    return run(Cell("classify", "tiny", "lora", 1024, "forge", "tree", 32, 4), **changes)


def test_a_longer_length_that_takes_less_memory_or_goes_faster_is_flagged():
    (found,) = find_inversions(ledger.rows_of([run(peak_mib=1000), long(peak_mib=900)]))
    assert found.text == "tiny, lora, tree: length 1024 is less memory than 512 (900 MiB and 1,000 MiB)"
    (found,) = find_inversions(ledger.rows_of([run(step_s=4), long(step_s=3)]))
    assert "faster" in found.text


def test_differences_within_noise_and_rows_out_of_memory_are_not_flagged():
    assert not find_inversions(ledger.rows_of([run(step_s=4, peak_mib=1000), long(step_s=3.8, peak_mib=980)]))
    assert not find_inversions(ledger.rows_of([run(), long(outcome="oom", peak_mib=10)]))


def test_the_chart_has_a_bar_or_a_word_for_every_row(tmp_path):
    pytest.importorskip("matplotlib")
    draw(ledger.rows_of([run(), run(PEER), long(outcome="oom")]), tmp_path / "new/chart.png")
    assert (tmp_path / "new/chart.png").read_bytes().startswith(b"\x89PNG")
