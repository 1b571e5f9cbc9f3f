"""Two files of predictions, joined by row."""

import json
from pathlib import Path

import pytest

from llmforge.errors import RecipeError
from llmforge.eval.compare import as_csv, as_json_lines, compare


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def line(row: int, predict: str, label: str, **scores: float) -> dict:
    return {"row": row, "prompt": f"ask {row}", "predict": predict, "label": label, "scores": scores}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    before = [line(0, "cat", "dog"), line(1, "dog", "dog"), line(2, "cow", "dog"), line(7, "x", "y")]
    after = [line(2, "dog", "dog"), line(0, "dog", "dog"), line(1, "cat", "dog")]
    return write(tmp_path / "before.jsonl", before), write(tmp_path / "after.jsonl", after)


def test_rows_are_joined_by_number_whatever_their_order(files: tuple[Path, Path]) -> None:
    found = compare(*files)
    assert [(p.row, p.before.predict, p.after.predict) for p in found.pairs] == [
        (0, "cat", "dog"),
        (1, "dog", "cat"),
        (2, "cow", "dog"),
    ]
    assert found.notes == [f"1 rows are only in {files[0]}"]


def test_a_row_that_was_right_and_is_wrong_now_is_worse(files: tuple[Path, Path]) -> None:
    found = compare(*files)
    assert [pair.change("exact_match") for pair in found.pairs] == ["better", "worse", "better"]
    assert found.counts("exact_match") == {"better": 2, "worse": 1, "same": 0, "unscored": 0}


def test_a_difference_that_chance_explains_is_not_sure(files: tuple[Path, Path]) -> None:
    (found,) = compare(*files).differences()
    assert (found.before, found.after) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found.low < 0 < found.high
    assert not found.sure


def test_a_difference_in_every_row_is_sure(tmp_path: Path) -> None:
    before = write(tmp_path / "b.jsonl", [line(i, "no", "yes", bleu=10.0) for i in range(20)])
    after = write(tmp_path / "a.jsonl", [line(i, "yes", "yes", bleu=90.0) for i in range(20)])
    found = {one.metric: one for one in compare(before, after).differences()}
    assert found["bleu"].sure
    assert (found["bleu"].low, found["bleu"].high) == (80.0, 80.0)
    assert found["exact_match"].sure


def test_files_of_other_questions_are_refused(tmp_path: Path) -> None:
    before = write(tmp_path / "b.jsonl", [line(0, "a", "b")])
    after = write(tmp_path / "a.jsonl", [{**line(0, "a", "b"), "prompt": "another question"}])
    with pytest.raises(RecipeError, match="row 0 asks something else in each"):
        compare(before, after)


def test_llama_factorys_files_without_rows_and_scores_are_joined_by_line(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "predict": "x", "label": "x"}, {"prompt": "q", "predict": "y", "label": "z"}]
    path = write(tmp_path / "lf.jsonl", rows)
    (found,) = compare(path, path).differences()
    assert (found.metric, found.before, found.after) == ("exact_match", 0.5, 0.5)


def test_an_export_runs_no_formula(tmp_path: Path) -> None:
    rows = [line(0, '=HYPERLINK("http://x")', "dog")]
    path = write(tmp_path / "p.jsonl", rows)
    listed = list(compare(path, path).as_rows())
    assert "'=HYPERLINK" in as_csv(listed)
    assert json.loads(as_json_lines(listed))["before"] == '=HYPERLINK("http://x")'
