"""The board's queue of rows under review: the same decisions as `forge-cli data review`, kept at once."""

import json
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.review import Review
from llmforge.errors import RecipeError
from llmforge.webui.review_queue import Place, Queue
from llmforge.webui.review_schema import changes
from llmforge.webui.review_view import marked, show_list, show_progress, show_row
from llmforge.webui.words import Words

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["fire", "flood"]}, "floor": {"type": "integer"}},
    "required": ["label"],
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"r{i}", "instruction": "Which?", "input": f"report {i}", "output": {"floor": i}} for i in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def queue(rows: Path) -> Queue:
    queue = Queue.open(rows)
    queue.refresh()
    return queue


def states(path: Path) -> list[str]:
    """As the command line sees them."""
    return [item.state for item in Review.open(DatasetRecipe(), [path]).items()]


def test_a_decision_is_on_the_disk_before_the_next_row_is_shown(queue: Queue, rows: Path) -> None:
    place = Place(row=queue.first_open())
    queue.decide(place, "accepted", "ann")
    assert states(rows) == ["accepted", "pending", "pending", "pending", "pending"]
    place.row = queue.step(place, 1)
    assert queue.decide(place, "edited", "ann", {"/output/floor": 9}).reviewed.row["output"] == {"floor": 9}
    assert states(rows)[:2] == ["accepted", "edited"]
    assert Queue.open(rows).path.read_text().count("\n") == 2


def test_undo_takes_back_one_decision_at_a_time_also_of_an_edited_row(queue: Queue, rows: Path) -> None:
    place = Place(row="r0")
    queue.decide(place, "edited", "ann", {"/input": "new text"})
    queue.decide(place, "rejected", "ann")
    assert queue.undo(place, "ann") == "r0"
    item = queue.items["r0"]
    assert (item.state, item.reviewed.row["input"]) == ("edited", "new text")
    queue.undo(place, "ann")
    assert (queue.items["r0"].state, queue.items["r0"].reviewed.row["input"]) == ("pending", "report 0")
    assert states(rows)[0] == "pending"
    assert queue.undo(place, "ann") is None


def test_what_another_reviewer_decides_is_seen(queue: Queue, rows: Path) -> None:
    Review.open(DatasetRecipe(), [rows]).decide("r3", "rejected", "bob")
    queue.refresh()
    assert queue.counts()["rejected"] == 1


def test_filters_and_search_keep_their_order_and_a_decided_row_is_left_behind(queue: Queue) -> None:
    place = Place(row="r0", filter="pending")
    following = queue.step(place, 1)
    queue.decide(place, "accepted", "ann")
    place.row = following
    assert (place.row, queue.ids(place)) == ("r1", ["r1", "r2", "r3", "r4"])
    place.search = "REPORT 4"
    assert queue.ids(place) == ["r4"]
    place.search = "nothing"
    assert queue.window(place) == ([], 0, 0)


def test_the_last_row_stays_when_there_is_no_next_one(queue: Queue) -> None:
    place = Place(row="r4")
    assert queue.step(place, 1) == "r4"
    assert queue.step(Place(row="r0"), -1) == "r0"


def test_a_window_holds_the_current_row(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "input": f"row {i}"}) + "\n" for i in range(500)))
    queue = Queue.open(path)
    queue.refresh()
    items, start, total = queue.window(Place(row="300"))
    assert (len(items), total) == (50, 500)
    assert start <= 300 < start + 50
    assert "300" in [item.id for item in items]


def test_similar_rows_share_most_words(tmp_path: Path) -> None:
    path = tmp_path / "alike.jsonl"
    texts = ["the printer on floor one is jammed", "the printer on floor two is jammed", "a parcel is late"]
    path.write_text("".join(json.dumps({"id": str(i), "input": text}) + "\n" for i, text in enumerate(texts)))
    queue = Queue.open(path)
    queue.refresh()
    assert [id for id, _ in queue.similar("0")] == ["1"]


def test_rows_against_the_recipes_schema_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "made.yaml").write_text("kind: dataset\nname: made\noutput_schema: schema.json\n")
    ok = tmp_path / "work/made/ok"
    ok.mkdir(parents=True)
    for index, label in enumerate(("fire", "storm")):
        out = {"label": label}
        record = {"id": f"m{index}", "index": index, "out": out, "instruction": "?", "input": "", "output": out}
        (ok / f"m{index}.json").write_text(json.dumps(record))
    queue = Queue.open(tmp_path / "made.yaml")
    queue.refresh()
    assert queue.ids(Place(filter="invalid")) == ["m1"]
    assert queue.wrong(queue.items["m1"]) == ["label: 'storm' is not one of ['fire', 'flood']"]
    queue.decide(Place(row="m1"), "edited", "ann", {"/output/label": "flood"})
    assert queue.ids(Place(filter="invalid")) == []


def test_what_cannot_be_reviewed_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("kind: dataset\nname: nothing_yet\n")
    with pytest.raises(RecipeError, match="holds no accepted rows"):
        Queue.open(tmp_path / "empty.yaml")


def test_changes_go_as_deep_as_the_keys_are_the_same() -> None:
    old = {"a": {"b": 1, "c/d": [1, 2]}, "e": 1}
    assert changes(old, {"a": {"b": 2, "c/d": [1]}, "e": 1}) == [("/a/b", 2), ("/a/c~1d", [1])]
    assert changes(old, {"a": {"b": 2}, "e": 1}) == [("/a", {"b": 2})]


def test_what_changed_inside_a_text_is_marked() -> None:
    assert marked("red cat", "red car") == ["red ca", "<del>t</del>", "<ins>r</ins>"]


def test_a_rows_markup_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl"
    path.write_text(
        json.dumps({"id": "<b>x", "input": "<img src=x onerror=alert(1)>", "output": "</textarea><script>"})
    )
    queue = Queue.open(path)
    queue.refresh()
    words, place = Words("en"), Place(row="<b>x")
    for editing in (False, True):
        shown = show_row(words, queue, queue.items["<b>x"], editing, {}, ["<i>wrong"])
        assert not any(tag in shown for tag in ("<img", "<script", "<b>x", "<i>wrong"))
    assert "<img" not in show_list(words, queue, place)


def test_a_random_part_is_always_the_same_and_tells_how_many_rows_are_wrong(rows: Path, queue: Queue) -> None:
    part, again = Queue.open(rows, 0.4), Queue.open(rows, 0.4)
    part.refresh()
    again.refresh()
    assert len(part.items) == 2
    assert list(part.items) == list(again.items)
    for id, state in zip(list(part.items), ("accepted", "rejected"), strict=True):
        part.decide(Place(row=id), state, "ann")
    rate = part.errors()
    assert rate is not None
    assert (rate.rate, rate.low < 0.5 < rate.high) == (0.5, True)
    queue.refresh()
    assert queue.counts() == {"pending": 3, "accepted": 1, "edited": 0, "rejected": 1, "skipped": 0}
    assert "2 of 5 rows" in show_progress(Words("en"), part)
    assert "random part" not in show_progress(Words("en"), queue)
