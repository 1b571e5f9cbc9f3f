"""The data sets we ship: made again byte for byte, balanced, and without a test row that training has seen."""

import csv
import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
ENTRIES = json.loads((DATA / "dataset_info.json").read_text(encoding="utf-8"))
# LLaMA-Factory's keys (its data/README.md), so that the folder works there too.
KEYS = {"file_name", "formatting", "ranking", "columns", "tags"}


def rows(name):
    with (DATA / ENTRIES[name]["file_name"]).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(DATA / "make_data.py"))


def test_the_script_makes_every_file_again_byte_for_byte(script):
    made = script["files"]()
    assert set(made) == {entry["file_name"] for entry in ENTRIES.values()}
    assert [name for name, content in made.items() if (DATA / name).read_bytes() != content] == []


def test_the_whole_folder_stays_small():
    assert sum(path.stat().st_size for path in DATA.glob("*.*")) < 4_000_000


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_use_llama_factory_s_keys_only(name):
    assert set(ENTRIES[name]) <= KEYS


@pytest.mark.parametrize("task", ["report_classify_en", "report_classify_zh", "report_extract_en", "report_extract_zh"])
def test_no_report_of_the_test_set_is_in_the_training_set(task):
    train, test = ([row["input"] for row in rows(f"{task}_{split}")] for split in ("train", "test"))
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert not set(train) & set(test)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_labels_are_balanced_and_named_in_the_instruction(language):
    for split, count in (("train", 1000), ("test", 200)):
        data = rows(f"report_classify_{language}_{split}")
        labels = Counter(json.loads(row["output"])["label"] for row in data)
        assert len(data) == count
        assert (len(labels), set(labels.values())) == (8, {count // 8})
        assert len({row["instruction"] for row in data}) == 1
        assert all(label in data[0]["instruction"] for label in labels)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_half_of_the_test_reports_use_wordings_that_training_lacks(language, script):
    """A wording of the lists is recognised by its longest piece without slots."""
    lists = script["words"](f"reports_{language}")["classes"]
    pieces = {
        split: [max(script["re"].split(r"\{\w+\}", text), key=len).lower() for c in lists.values() for text in c[split]]
        for split in ("train", "test")
    }

    def uses(row, split):
        return any(piece in row["input"].lower() for piece in pieces[split])

    assert not [row for row in rows(f"report_classify_{language}_train") if uses(row, "test")]
    assert sum(uses(row, "test") for row in rows(f"report_classify_{language}_test")) == 96


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_extracted_field_is_found_in_its_report(language):
    for split in ("train", "test"):
        for row in rows(f"report_extract_{language}_{split}"):
            place, kind, hurt, clock = json.loads(row["output"]).values()
            assert place in row["input"]
            assert clock in row["input"]
            assert kind in row["instruction"]
            assert isinstance(hurt, int)


def test_the_forum_sheet_has_what_such_sheets_have():
    raw = (DATA / "legal_faq.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    with (DATA / "legal_faq.csv").open(encoding="utf-8-sig", newline="") as file:
        sheet = list(csv.DictReader(file))
    assert list(sheet[0]) == ["title", "question", "reply", "is_best"]
    assert any("\n" in row["reply"] for row in sheet)
    assert any('"' in row["question"] for row in sheet)
    best = [row for row in sheet if row["is_best"] == "1"]
    assert len(best) == len({row["title"] for row in sheet}) < len(sheet)
    asked = {
        row["conversations"][0]["content"] for row in (*rows("legal_faq_chat_train"), *rows("legal_faq_chat_test"))
    }
    assert asked == {f"{row['title']}\n{row['question']}" for row in best}
