"""The file of predictions grows, survives a kill, and refuses to mix what was made differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmforge.errors import RecipeError
from llmforge.eval.predictions import Prediction, PredictionFile, read_predictions

SETTINGS = {"model": "tiny 12ab", "adapters": [], "temperature": 0.0}
WANTED = {row: (f"question {row}", f"answer {row}") for row in (1, 2, 3)}


def made(row: int) -> Prediction:
    return Prediction(row, f"question {row}", f"reply {row}", f"answer {row}", "stop")


def interrupted_after(folder: Path, *rows: int) -> PredictionFile:
    file = PredictionFile(folder)
    file.begin(SETTINGS, WANTED, overwrite=False)
    for row in rows:
        file.append(made(row))
    file.close()
    return PredictionFile(folder)


def test_an_interrupted_file_goes_on_and_ends_in_the_order_of_rows(tmp_path):
    file = interrupted_after(tmp_path, 3, 1)
    done = file.begin(SETTINGS, WANTED, overwrite=False)
    assert sorted(done) == [1, 3]
    file.append(made(2))
    file.finish([*done.values(), made(2)])
    assert [p.row for p in read_predictions(file.path)] == [1, 2, 3]
    assert list(PredictionFile(tmp_path).begin(SETTINGS, WANTED, overwrite=False)) == [1, 2, 3]


@pytest.mark.parametrize("kept", range(1, 30, 4))
def test_a_line_cut_by_a_kill_is_made_again(tmp_path, kept):
    file = interrupted_after(tmp_path, 1, 2)
    whole = file.path.read_bytes()
    first = whole.index(b"\n") + 1
    file.path.write_bytes(whole[: first + kept])
    assert list(file.begin(SETTINGS, WANTED, overwrite=False)) == [1]
    assert file.path.read_bytes() == whole[:first]


def test_each_line_is_on_disk_before_the_next_row_is_generated(tmp_path):
    file = PredictionFile(tmp_path)
    file.begin(SETTINGS, WANTED, overwrite=False)
    file.append(made(2))
    assert [p.predict for p in read_predictions(file.path)] == ["reply 2"]
    file.close()


def test_other_settings_are_named_and_nothing_is_lost(tmp_path):
    file = interrupted_after(tmp_path, 1)
    before = file.path.read_bytes()
    with pytest.raises(RecipeError, match=r"temperature: 0\.0 then, 0\.9 now(.|\n)*overwrite_output_dir=true"):
        file.begin(SETTINGS | {"temperature": 0.9}, WANTED, overwrite=False)
    assert file.path.read_bytes() == before


def test_other_settings_with_overwrite_start_anew(tmp_path):
    file = interrupted_after(tmp_path, 1, 2)
    assert file.begin(SETTINGS | {"temperature": 0.9}, WANTED, overwrite=True) == {}
    assert file.path.read_bytes() == b""


def test_other_rows_are_another_file_and_more_rows_are_the_same(tmp_path):
    file = interrupted_after(tmp_path, 1, 2)
    more = WANTED | {4: ("question 4", "answer 4")}
    assert sorted(file.begin(SETTINGS, more, overwrite=False)) == [1, 2]
    file.close()
    with pytest.raises(RecipeError, match="data: row 2 is another one"):
        file.begin(SETTINGS, WANTED | {2: ("question 2", "another answer")}, overwrite=False)
    with pytest.raises(RecipeError, match=r"data: row 1 is another one \(2 such rows\)"):
        file.begin(SETTINGS, {}, overwrite=False)


def test_predictions_of_unknown_origin_are_not_taken_over(tmp_path):
    file = interrupted_after(tmp_path, 1)
    file.state_path.unlink()
    with pytest.raises(RecipeError, match="nobody knows how"):
        file.begin(SETTINGS, WANTED, overwrite=False)


def test_texts_come_back_as_they_were(tmp_path):
    strange = ["", "\u2028\x85\r\n", "\ud800", "😀", '"\\', "\x00", "火灾"]
    file = PredictionFile(tmp_path)
    file.begin(SETTINGS, {}, overwrite=False)
    for row, text in enumerate(strange):
        file.append(Prediction(row, text, text, text, "stop", {"exact_match": True}))
    file.close()
    assert [p.predict for p in read_predictions(file.path)] == strange
    assert "火灾" in file.path.read_text(encoding="utf-8")


def test_a_file_of_llama_factory_can_be_read(tmp_path):
    path = tmp_path / "generated_predictions.jsonl"
    path.write_text(json.dumps({"prompt": "p", "predict": "a", "label": "b"}) + "\n\n", encoding="utf-8")
    assert list(read_predictions(path)) == [Prediction(0, "p", "a", "b", "")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not valid JSON"),
        ("[1]", r"line 2: got list, expected an object"),
        ('{"predict": "a"}', r"line 2: label: got None, expected text"),
        ('{"predict": 3, "label": "a"}', r"line 2: predict: got 3, expected text"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"predict": "a", "label": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        list(read_predictions(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such file of predictions"):
        list(read_predictions(tmp_path / "none.jsonl"))
