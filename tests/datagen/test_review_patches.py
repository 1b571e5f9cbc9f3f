"""Decisions are patches: they outlive the rows, apply again to the same bytes, and notice when they do not fit."""

import json
import multiprocessing
from pathlib import Path

import pytest

from llmforge.datagen.convert import convert
from llmforge.datagen.patches import PATCHES, Patch, append_patches, base_hash, read_patches
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.review import Review
from llmforge.errors import RecipeError

ROWS = 10


def record(index: int, **changes) -> dict:
    out = {"symbol": "arrow", "points": [[103.5 + index, 30.0]]}
    made = {
        "id": f"r{index}",
        "index": index,
        "variant": None,
        "slots": {"symbol": {"code": f"S{index % 3}"}},
        "compute": {},
        "messages": [{"role": "user", "content": "ask"}],
        "out": out,
        "instruction": "mark it",
        "input": f"report {index}",
        "output": out,
        "repaired": False,
    }
    return {**made, **changes}


def make(folder: Path, *records: dict) -> None:
    (folder / "ok").mkdir(parents=True, exist_ok=True)
    for each in records or map(record, range(ROWS)):
        (folder / f"ok/{each['id']}.json").write_text(json.dumps(each))


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USER", "wang")
    make(Path("work/d"))
    return Path("work/d")


def opened(*words: str) -> Review:
    return Review.open(load_dataset_recipe(["name=d", *words], "calibrate"))


def test_every_state_is_kept_with_author_time_and_base(work):
    review = opened()
    review.decide("r0", "accepted", "wang")
    review.decide("r1", "rejected", "li", note="wrong symbol")
    review.decide("r2", "skipped", "li")
    edited = review.decide("r3", "edited", "wang", {"input": "report three"})
    assert edited.reviewed.row["input"] == "report three"
    states = {item.id: item.state for item in opened().items()}
    assert states == {"r0": "accepted", "r1": "rejected", "r2": "skipped", "r3": "edited"} | {
        f"r{i}": "pending" for i in range(4, ROWS)
    }
    lines = [json.loads(line) for line in (work / PATCHES).read_text().splitlines()]
    assert lines[3]["fields"] == {"/input": {"old": "report 3", "new": "report three"}}
    assert lines[3]["base"] == base_hash(record(3))
    assert {line["author"] for line in lines} == {"wang", "li"}
    assert all(line["time"].endswith("Z") for line in lines)
    assert json.loads((work / "ok/r3.json").read_text()) == record(3)  # rows themselves are never changed


def test_an_edit_of_the_answer_reaches_the_training_row(work):
    edited = opened("calibrate.fields=input,out.points").decide("r1", "edited", "wang", {"out.points[0][1]": 31.5})
    assert edited.reviewed.row["out"]["points"] == edited.reviewed.row["output"]["points"] == [[104.5, 31.5]]
    make(work, record(2, output="north"))
    with pytest.raises(RecipeError, match="edit the same place in output"):
        opened().decide("r2", "edited", "wang", {"out.points": []})


def test_patches_apply_again_after_rows_are_made_anew_and_give_the_same_bytes(work):
    review = opened()
    review.decide("r1", "edited", "wang", {"/output/points/0/0": 99.0})
    review.decide("r2", "rejected", "wang")
    recipe = load_dataset_recipe(["name=d", "convert.out=out"], "convert")
    first = convert(recipe)
    before = first.files["d"].read_bytes()
    for path in (work / "ok").iterdir():
        path.unlink()
    make(work)
    assert convert(recipe).files["d"].read_bytes() == before
    rows = [json.loads(line) for line in before.splitlines()]
    assert [row["input"] for row in rows] == [f"report {i}" for i in range(ROWS) if i != 2]
    assert json.loads(rows[1]["output"])["points"] == [[99.0, 30.0]]
    assert [(str(s), why) for s, why in first.report.rejected] == [("work/d/ok/r2.json", "rejected in review")]
    assert [what for _, what in first.report.fixed if "review" in what] == ["edited in review by wang"]


def test_a_decision_about_another_row_asks_again_and_an_edit_that_still_fits_holds(work):
    review = opened()
    for id in ("r0", "r1", "r2"):
        review.decide(id, "accepted", "wang")
    review.decide("r3", "edited", "wang", {"input": "report three"})
    review.decide("r4", "edited", "wang", {"input": "report four"})
    make(work, record(1, instruction="draw it"), record(3, instruction="draw it"), record(4, input="another report"))
    items = {item.id: item for item in opened().items()}
    assert [items[f"r{i}"].state for i in range(5)] == ["accepted", "pending", "accepted", "edited", "pending"]
    assert items["r3"].reviewed.row["input"] == "report three"
    assert items["r4"].reviewed.row["input"] == "another report"
    assert "the row was made anew since" in items["r1"].reviewed.stale
    assert "/input is no longer what was edited" in items["r4"].reviewed.stale
    assert [stale["id"] for stale in opened().summary()["stale"]] == ["r1", "r4"]


def test_a_decision_can_be_taken_back_and_made_again(work):
    review = opened()
    review.decide("r0", "edited", "wang", {"input": "x"})
    review.decide("r0", "pending", "wang")
    assert review.item("r0").state == "pending"
    assert review.item("r0").reviewed.row == record(0)
    review.decide("r0", "edited", "wang", {"input": "y"})
    review.decide("r0", "accepted", "li")
    assert review.item("r0").state == "edited"  # accepted as edited
    assert review.item("r0").reviewed.row["input"] == "y"


def test_rows_nobody_decided_about_are_kept_or_dropped_as_said(work):
    opened().decide("r0", "accepted", "wang")
    kept = convert(load_dataset_recipe(["name=d", "convert.out=out"], "convert"))
    assert kept.report.rows_out == ROWS
    assert kept.report.notes[0] == "9 of 10 rows were not reviewed"
    dropped = convert(load_dataset_recipe(["name=d", "convert.out=out", "convert.unreviewed=drop"], "convert"))
    assert dropped.report.rows_out == 1
    assert dropped.report.reasons() == {"not reviewed (unreviewed: drop)": 9}


def _decide(number: int, folder: str, gate) -> None:
    gate.wait()
    append_patches(Path(folder), [Patch(f"r{number % ROWS}", "accepted", f"a{number}", "0" * 32)])


def test_reviewers_at_the_same_time_lose_no_decision(work):
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(20)
    writers = [fork.Process(target=_decide, args=(number, str(work), gate)) for number in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(patch.author for patch in read_patches(work)) == sorted(f"a{number}" for number in range(20))


def test_half_a_line_from_a_power_cut_costs_only_itself(work):
    opened().decide("r0", "accepted", "wang")
    with open(work / PATCHES, "a") as file:
        file.write('{"id": "r1", "sta')
    assert len(read_patches(work)) == 1
    opened().decide("r2", "accepted", "wang")
    assert [patch.id for patch in read_patches(work)] == ["r0", "r2"]
    lines = (work / PATCHES).read_text().splitlines()
    (work / PATCHES).write_text("\n".join([lines[0], "{oops", lines[1], ""]))
    with pytest.raises(RecipeError, match="line 2: no decision"):
        read_patches(work)


@pytest.mark.parametrize("state", ["maybe", "accept"])
def test_an_unknown_state_row_or_field_is_refused(work, state):
    review = opened()
    with pytest.raises(RecipeError, match="Known: pending, accepted"):
        review.decide("r0", state, "wang")
    with pytest.raises(RecipeError, match="no row 'r99'"):
        review.decide("r99", "accepted", "wang")
    with pytest.raises(RecipeError, match="has no field 'inptu'"):
        review.decide("r0", "edited", "wang", {"inptu": "x"})
    with pytest.raises(RecipeError, match="Did you mean 'input'"):
        opened("calibrate.fields=inptu")
    assert not (work / PATCHES).exists()


def test_any_file_of_rows_can_be_reviewed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("name,q,a\nx,1,one\ny,2,two\n")
    recipe = load_dataset_recipe(["calibrate.id=name"], "calibrate")
    review = Review.open(recipe, [Path("rows.csv")])
    review.decide("y", "edited", "li", {"a": "zwei"})
    assert Path("rows.csv.review/patches.jsonl").is_file()
    assert [item.reviewed.row["a"] for item in Review.open(recipe, [Path("rows.csv")]).items()] == ["one", "zwei"]
    assert review.fields == ["/q", "/a"]
