"""`forge-cli data check|stats|show|coverage|build`: what they print, and what they end with."""

import json
from pathlib import Path

import pytest

from llmforge.cli import main

SHARED = Path(__file__).parents[1] / "../shared"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    save("train.jsonl", [{"instruction": f"Where is {i}?", "output": "ab"[i % 2]} for i in range(12)])
    save("test.jsonl", [{"instruction": "where is 3", "output": "b"}, {"instruction": "new", "output": ""}])
    return tmp_path


def save(name, rows):
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_check_prints_one_object_for_each_data_set(folder, capsys, tiny_tokenizer_dir):
    words = ["dataset=train.jsonl", "eval_dataset=test.jsonl", f"model_name_or_path={tiny_tokenizer_dir}"]
    assert main(["data", "check", *words, "template=chatml", "cutoff_len=64", "--json"]) == 0
    train, test = lines(capsys)
    assert list(train)[:5] == ["name", "rows_in", "rows_ok", "rejected", "fixed"]
    assert (train["name"], train["rows_in"], train["rows_ok"], train["rejected"]) == ("train", 12, 12, [])
    assert train["labels"] == {"a": 6, "b": 6}
    assert train["lengths"]["rows"] == 12
    assert test["rejected"] == [{"file": "test.jsonl", "row": 2, "reason": "the reply is empty"}]
    assert test["leakage"] == [{"row": 1, "kind": "row", "seen": {"file": "train.jsonl", "row": 4}, "share": 1.0}]


def test_check_says_the_same_in_words(folder, capsys):
    assert main(["data", "check", "train.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert "train: 12 of 12 rows are usable at stage sft" in out
    assert "labels: a 6 (50%), b 6 (50%)" in out
    assert "tokens are not counted; name a model" in err


def test_a_data_set_that_cannot_be_read_ends_with_2_after_the_others(folder, capsys):
    (folder / "broken.jsonl").write_text('{"instruction": "q", "output": "a"}\n{broken')
    assert main(["data", "check", "broken.jsonl", "train.jsonl", "--json"]) == 2
    train, broken = lines(capsys)
    assert train["name"] == "train"
    assert broken["name"] == "broken"
    assert "line 2" in broken["error"]


def test_a_registry_stands_for_all_its_entries(folder, capsys):
    entries = {"mine": {"file_name": "train.jsonl"}, "gone": {"file_name": "gone.jsonl"}, "hub": {"hf_hub_url": "a/b"}}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    assert main(["data", "check", "dataset_info.json", "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["name"] for line in printed.out.splitlines()] == ["mine"]
    assert "1 entries are on a hub: hub" in printed.err
    assert "gone" in printed.err


def test_show_marks_what_is_trained(folder, capsys, tiny_tokenizer_dir):
    words = ["train.jsonl", "--row", "2", f"model_name_or_path={tiny_tokenizer_dir}", "template=chatml"]
    assert main(["data", "show", *words]) == 0
    assert "Where is 1?<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧" in capsys.readouterr().out
    assert main(["data", "show", *words, "--json"]) == 0
    (told,) = lines(capsys)
    assert told["row"] == 2
    assert told["learned"] == 2
    assert told["spans"][-1] == {"text": "b<|im_end|>", "trained": True, "label": None}
    assert main(["data", "show", *words, "row=9"]) == 2
    assert main(["data", "show", "train.jsonl", "--row", "99", *words[3:]]) == 2
    assert "row 99 is not usable: there is none" in capsys.readouterr().err
    assert main(["data", "show", "test.jsonl", "--row", "2", *words[3:]]) == 2
    assert "row 2 is not usable: the reply is empty" in capsys.readouterr().err
    assert main(["data", "show", "train.jsonl"]) == 2


def test_stats_are_numbers_of_each_data_set(folder, capsys):
    assert main(["data", "stats", "train.jsonl", "test.jsonl", "--json"]) == 0
    train, test = lines(capsys)
    assert (train["rows"], train["turns"], test["rows"]) == (12, {"1": 12}, 1)
    assert main(["data", "stats", "train.jsonl"]) == 0
    assert "12 x 1" in capsys.readouterr().out


def test_coverage_ends_with_3_below_the_minimum(folder, capsys):
    assert main(["data", "coverage", "train.jsonl", "--field", "output", "--min", "6"]) == 0
    capsys.readouterr()
    assert main(["data", "coverage", "train.jsonl", "--field", "output", "--min", "7", "--json"]) == 3
    (told,) = lines(capsys)
    assert (told["gaps"], told["counts"]) == ({"a": 1, "b": 1}, {"a": 6, "b": 6})
    assert main(["data", "coverage", "train.jsonl", "--field", "output", "--values", "a,b,c"]) == 3
    assert "c        0  1 too few" in capsys.readouterr().out
    (folder / "values.txt").write_text("a\nb\n")
    assert main(["data", "coverage", "train.jsonl", "--field", "output", "--values", "values.txt"]) == 0
    assert main(["data", "coverage", "train.jsonl", "--field", "outptu"]) == 2
    assert main(["data", "coverage", "train.jsonl"]) == 2


def test_build_leaves_what_training_finds(folder, capsys, tiny_tokenizer_dir):
    words = ["train.jsonl", f"model_name_or_path={tiny_tokenizer_dir}", "template=chatml", "mix_caps={train: 5}"]
    assert main(["data", "build", *words, "--json"]) == 0
    (told,) = lines(capsys)
    assert told["sets"][0]["made"]
    assert Path(told["sets"][0]["folder"]).is_dir()
    assert (told["mixture"][0]["available"], told["mixture"][0]["rows"]) == (12, 5)
    assert main(["data", "build", *words]) == 0
    out = capsys.readouterr().out
    assert "12 rows, " in out
    assert "tokens found in " in out
    assert main(["data", "build", "train.jsonl"]) == 2


@pytest.mark.parametrize("command", ["check", "stats", "show", "coverage", "build"])
def test_help_and_nothing_at_all_say_how(command, folder, capsys):
    assert main(["data", command, "--help"]) == 0
    assert f"forge-cli data {command} R" in capsys.readouterr().out
    assert main(["data", command, "--json", "dataset=nowhere.jsonl", "--field=x"]) == 2


def test_wrong_words_are_named(folder, capsys):
    assert main(["data", "check", "--jsno", "train.jsonl"]) == 2
    assert main(["data", "chekc", "train.jsonl"]) == 2
    assert "Did you mean 'check'" in capsys.readouterr().err
