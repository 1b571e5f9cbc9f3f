"""The rows a benchmark is measured on are the same every time."""

import json

import pytest

from llmforge.bench.workload import classify, fill, read_rows, write_data
from llmforge.errors import RecipeError


def test_classify_rows_share_a_long_instruction_and_answer_in_short_json():
    rows = classify(96, 512)
    assert len({row["instruction"] for row in rows}) == 1
    assert 200 < len(rows[0]["instruction"].split()) < 270  # about 290 tokens of SmolLM2's vocabulary
    assert len({row["input"] for row in rows}) == 96
    assert all(5 <= len(row["input"].split()) <= 50 for row in rows)
    assert all(set(json.loads(row["output"])) == {"kind", "urgent", "place", "crew"} for row in rows)
    assert classify(96, 512) == rows


def test_fill_rows_are_longer_than_any_length_and_differ():
    rows = fill(8, 1024)
    assert all(len(row["output"].split()) == 1024 for row in rows)
    assert len({row["instruction"][:40] for row in rows}) == 8


def test_the_first_rows_of_a_file_are_taken_from_json_and_jsonl(tmp_path):
    rows = [{"instruction": f"{n}", "input": "", "output": "x"} for n in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path / "a.json", 3) == read_rows(tmp_path / "a.jsonl", 3) == rows[:3]
    with pytest.raises(RecipeError, match=r"holds 4 rows, --rows times \(--steps \+ 1\) asks for 5"):
        read_rows(tmp_path / "a.json", 5)
    (tmp_path / "b.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(RecipeError, match=r"row 0 of .*b\.jsonl has no key 'instruction'"):
        read_rows(tmp_path / "b.jsonl", 1)


def test_the_same_rows_have_the_same_digest_and_a_list_every_trainer_reads(tmp_path):
    a, b, c = (write_data(tmp_path / name, "classify", n, 512, None) for name, n in (("a", 4), ("b", 4), ("c", 5)))
    assert a.digest == b.digest != c.digest
    assert json.loads((a.path / "dataset_info.json").read_text()) == {"bench": {"file_name": "bench.json"}}


def test_pairs_are_described_so_that_both_trainers_read_them(tmp_path):
    made = write_data(tmp_path / "made", "dpo", 4, 512, None)
    info = json.loads((made.path / "dataset_info.json").read_text())["bench"]
    assert info["ranking"]
    assert info["columns"]["chosen"] == "chosen"
    assert made.stage == "dpo"
    rows = json.loads((made.path / "bench.json").read_text())
    assert all(row["chosen"] != row["rejected"] for row in rows)
    turns = [{"from": "human", "value": "Hi"}]
    pair = {"conversations": turns, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    (tmp_path / "pairs.json").write_text(json.dumps([pair] * 2))
    given = write_data(tmp_path / "given", "pairs", 2, 512, tmp_path / "pairs.json")
    info = json.loads((given.path / "dataset_info.json").read_text())["bench"]
    assert info["formatting"] == "sharegpt"
    assert info["columns"]["messages"] == "conversations"
    assert write_data(tmp_path / "plain", "classify", 4, 512, None).stage is None
