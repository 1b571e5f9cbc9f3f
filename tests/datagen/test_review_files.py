"""A review goes out to a spreadsheet and comes back; no cell runs, no decision is lost, nothing wrong is taken over."""

import csv
import io
import json
from pathlib import Path

import pytest

from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.review import Review
from llmforge.datagen.review_command import main
from llmforge.datagen.review_files import export_review, guarded, import_review, unguarded
from llmforge.errors import RecipeError

ROWS = [
    {"id": "a", "instruction": '=HYPERLINK("http://x")', "input": "第一行\n第二行", "output": {"x": [1, 2]}},
    {"id": "b", "instruction": "+86 123", "input": "@cmd", "output": "-5"},
    {"id": "c", "instruction": "'quoted'", "input": "", "output": "plain"},
]


@pytest.fixture
def review(tmp_path, monkeypatch) -> Review:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return Review.open(load_dataset_recipe([], "calibrate"), [Path("rows.jsonl")])


def read_csv(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_bytes().decode("utf-8-sig"), newline="")))


def write_csv(path: str, rows: list[dict[str, str]]) -> None:
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    Path(path).write_bytes(sheet.getvalue().encode("utf-8"))


def test_no_cell_of_the_table_is_a_formula(review):
    assert export_review(review, Path("r.csv")) == 3
    cells = [cell for row in read_csv("r.csv") for cell in row.values()]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    for text in ("=1", "'=1", "''", "'", "-5", "plain", "", "\tx", "@"):
        assert unguarded(guarded(text)) == text


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_an_untouched_table_changes_nothing(review, name):
    export_review(review, Path(name))
    assert import_review(review, Path(name), "li") == {
        "rows": 3, "unchanged": 3, "decided": 0, "edited": 0, "outdated": 0, "edits_not_taken": 0,
    }  # fmt: skip
    assert not (review.folder / "patches.jsonl").read_text()


def test_states_and_edits_come_back(review):
    export_review(review, Path("r.csv"))
    rows = read_csv("r.csv")
    rows[0]["/output"] = '{"x": [1, 3]}'
    rows[1] |= {"state": "rejected", "note": "wrong number", "/input": "ignored, since the row goes"}
    rows[2] |= {"state": "accepted", "/instruction": "''quoted' and more"}
    write_csv("back.csv", rows)
    counts = import_review(review, Path("back.csv"), "li")
    assert (counts["edited"], counts["decided"], counts["edits_not_taken"]) == (2, 1, 1)
    items = {item.id: item for item in review.items()}
    assert items["a"].reviewed.row["output"] == {"x": [1, 3]}
    assert items["a"].reviewed.row["input"] == "第一行\n第二行"
    assert (items["b"].state, items["b"].reviewed.note) == ("rejected", "wrong number")
    assert items["c"].reviewed.row["instruction"] == "'quoted' and more"
    assert {item.reviewed.author for item in items.values()} == {"li"}


def test_line_ends_a_spreadsheet_changed_are_no_edit(review):
    export_review(review, Path("r.csv"))
    rows = read_csv("r.csv")
    rows[0]["/input"] = "第一行\r\n第二行"
    write_csv("back.csv", rows)
    assert import_review(review, Path("back.csv"), "li")["unchanged"] == 3


def test_a_row_made_anew_since_the_export_is_left_out_and_counted(review):
    export_review(review, Path("r.csv"))
    rows = read_csv("r.csv")
    rows[0]["state"] = rows[1]["state"] = "accepted"
    write_csv("back.csv", rows)
    changed = [{**ROWS[0], "input": "new"}, *ROWS[1:]]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    again = Review.open(load_dataset_recipe([], "calibrate"), [Path("rows.jsonl")])
    counts = import_review(again, Path("back.csv"), "li")
    assert (counts["outdated"], counts["decided"]) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "zz"}, "row 2: no row 'zz'"),
        ({"state": "good"}, "row 2: review: state 'good'"),
        ({"/output": "x", "id": "a", "base": ""}, "row 2: /output: not valid JSON"),
    ],
)
def test_nothing_of_a_wrong_table_is_taken_over(review, change, message):
    export_review(review, Path("r.csv"))
    rows = read_csv("r.csv")
    rows[0]["state"] = "accepted"
    rows[1] |= change
    write_csv("back.csv", rows)
    with pytest.raises(RecipeError, match=message):
        import_review(review, Path("back.csv"), "li")
    assert not (review.folder / "patches.jsonl").exists()


def test_other_kinds_of_files_are_refused(review):
    Path("x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecipeError, match=r"expected a \.csv or \.jsonl file"):
        export_review(review, Path("r.xlsx"))
    with pytest.raises(RecipeError, match="expected the columns id and state"):
        import_review(review, Path("x.csv"), "li")


def test_the_command_exports_imports_and_tells_how_it_stands(review, capsys, monkeypatch):
    monkeypatch.setenv("USER", "wang")
    assert main(["rows.jsonl", "--export", "r.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    rows[0]["state"] = "accepted"
    Path("r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["rows.jsonl", "--import", "r.jsonl", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["imported"]["decided"] == told["states"]["accepted"] == 1
    assert main(["rows.jsonl", "--status"]) == 0
    assert "3 rows, 3 in the sample: 2 pending, 1 accepted" in capsys.readouterr().out
