"""`forge-cli data clean|split|merge|dedupe|diversify|contamination`: what goes in comes out or is named."""

import json
from pathlib import Path

import pytest

from llmforge.cli import main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def told(capsys, *words: str, code: int = 0) -> dict:
    capsys.readouterr()
    assert main(["data", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def chat(name: str, *texts: str) -> dict:
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": name, "conversations": said}


def test_clean_writes_what_stays_and_counts_the_rest(capsys):
    write("c.jsonl", [chat("a", "a good question", "<p>a good answer</p>"), chat("b", "hi", "ho")])
    result = told(capsys, "clean", "c.jsonl")
    assert (result["rows_in"], result["rows_ok"], result["out"]) == (2, 1, "c_clean.jsonl")
    assert result["rejected"] == [{"file": "c.jsonl", "row": 2, "reason": "shorter than 16 characters"}]
    assert read("c_clean.jsonl")[0]["conversations"][1]["value"] == "a good answer"


def test_flags_and_a_recipe_say_the_same(capsys):
    write("c.jsonl", [chat("a", "q", "a")])
    Path("r.yaml").write_text("kind: dataset\nclean: {min_chars: 2}\n")
    assert told(capsys, "clean", "c.jsonl", "--min_chars", "2") == told(capsys, "clean", "r.yaml", "c.jsonl")


def test_split_counts_with_the_model_s_tokenizer_or_characters(capsys, tiny_tokenizer_dir):
    write("c.jsonl", [chat("a", *["打印机卡纸了"] * 4)])
    assert told(capsys, "split", "c.jsonl", "--max_tokens", "24", "--out", "p.jsonl")["rounds_left_out"] == 0
    assert [row["id"] for row in read("p.jsonl")] == ["a_0", "a_1"]
    words = ("--max_tokens", "24", "--model", str(tiny_tokenizer_dir), "--out", "t.jsonl")
    from llmforge.data.tokenizer import load_tokenizer

    tokens = len(load_tokenizer(tiny_tokenizer_dir).ids("打印机卡纸了"))
    assert told(capsys, "split", "c.jsonl", *words)["rounds_left_out"] == (2 if 2 * (tokens + 6) > 24 else 0)


def test_merge_keeps_every_row_once_and_ids_apart(capsys):
    write("a.jsonl", [{"id": 1, "text": "x"}, {"id": 2, "text": "y"}])
    write("b.jsonl", [{"id": 1, "text": "x"}, {"id": 2, "text": "z"}])
    Path("c.csv").write_text("title\nt\n")
    result = told(capsys, "merge", "a.jsonl", "b.jsonl", "c.csv", "--out", "m.jsonl")
    assert read("m.jsonl") == [
        {"id": 1, "text": "x"}, {"id": 2, "text": "y"}, {"id": "2_2", "text": "z"}, {"title": "t"},
    ]  # fmt: skip
    assert result["rejected"] == [{"file": "b.jsonl", "row": 1, "reason": "equal to a.jsonl row 1"}]
    assert "rows have 2 sets of columns" in result["notes"][0]


def test_dedupe_names_the_row_each_copy_copies_and_keeps_test_rows_out(capsys):
    texts = [
        "房东不退押金怎么办，已经搬走三个月了",
        "房东不退押金怎么办？已经搬走三个月了！",
        "快递丢了没有保价怎么赔偿损失",
    ]
    texts += ["房东不退押金咋办，已经搬走三个月了", "公司拖欠工资半年没有合同怎么办"]
    write("d.jsonl", [{"instruction": text, "output": "答"} for text in texts])
    write("t.jsonl", [{"instruction": "快递丢了没有保价，怎么赔偿损失", "output": "别的"}])
    words = ("dedupe", "d.jsonl", "--field", "instruction", "--max", "0.85", "--against", "t.jsonl")
    result = told(capsys, *words, "--out", "o.jsonl")
    assert [(x["row"], x["reason"].partition(",")[0]) for x in result["rejected"]] == [
        (2, "a copy of d.jsonl row 1"), (3, "a copy of t.jsonl row 1"), (4, "a copy of d.jsonl row 1"),
    ]  # fmt: skip
    assert (result["exact"], result["near"], len(read("o.jsonl"))) == (2, 1, 2)


def test_diversify_tells_how_similarity_falls(capsys):
    rows = [
        {"instruction": f"{'甲乙丙丁戊己庚辛'[i]}" * 3 + "水位上涨请尽快转移群众", "output": "是"} for i in range(8)
    ]
    write("v.jsonl", rows)
    result = told(capsys, "diversify", "v.jsonl", "--keep", "0.5", "--near", "1")
    assert result["rows_in"] == 8 == result["rows_ok"] + len(result["rejected"])
    assert len(read("v_diversify.jsonl")) == result["rows_ok"] <= 6
    assert result["similarity_after"] <= result["similarity_before"]


def test_contamination_ends_with_3_and_names_both_rows(capsys):
    write("train.jsonl", [{"instruction": "北岸大桥东侧发现管涌请求支援，队伍已经出发", "output": "x"}])
    write(
        "test.jsonl",
        [
            {"instruction": "北岸大桥东侧发现管涌请求支援，队伍何时到达", "output": "y"},
            {"instruction": "别的", "output": "z"},
        ],
    )
    result = told(capsys, "contamination", "train.jsonl", "--test", "test.jsonl", code=3)
    assert (result["contaminated"], result["test_rows"]) == (1, 2)
    assert result["leaks"][0]["test"] == "test.jsonl row 1"
    assert result["leaks"][0]["how"] == "13 words in a row"
    told(capsys, "contamination", "train.jsonl", "--test", "test.jsonl", "--allowed", "1", code=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clean"], ""),
        (["clean", "none.jsonl"], "none.jsonl: no such file"),
        (["clean", "c.jsonl", "--min_char", "3"], "Did you mean"),
        (["clean", "c.jsonl", "--keep_lang", "klingon"], "expected one of zh, ja"),
        (["clean", "c.jsonl", "--out", "c.jsonl"], "is what is read"),
        (["clean", "c.jsonl", "--out", "c.csv"], r"expected a .jsonl file"),
        (["dedupe", "c.jsonl", "--field", "nothing"], "no row field 'nothing'"),
        (["dedupe", "c.jsonl", "--max", "1.5"], "expected a number above 0 and at most 1"),
        (["contamination", "c.jsonl"], "which test files?"),
        (["split", "c.jsonl", "--model", "no/such/model"], "no/such/model"),
        (["merge", "c.jsonl", "--out"], "--out needs a value"),
    ],
)
def test_wrong_words_end_with_2_and_one_message(capsys, words, message):
    write("c.jsonl", [chat("a", "a good question", "a good answer")])
    code = main(["data", *words])
    captured = capsys.readouterr()
    if not message:  # alone it prints its help
        assert (code, "--keep_lang" in captured.out) == (0, True)
        return
    assert code == 2
    assert message in captured.err
    assert [path.name for path in Path().iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize(
    "name", ["review", "convert", "add", "clean", "split", "merge", "dedupe", "diversify", "contamination"]
)
def test_every_step_shows_a_line_to_copy(capsys, name):
    assert main(["data", name, "--help"]) == 0
    assert f"$ forge-cli data {name} " in capsys.readouterr().out
