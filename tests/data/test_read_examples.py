import json
from pathlib import Path

import pytest

from llmforge.data.read import LONGEST_ROW, read_examples
from llmforge.data.registry import load_registry, resolve_dataset
from llmforge.errors import RecipeError

DATA = Path(__file__).parents[2] / "../shared/data"
PAIR = {"chosen": "chosen", "rejected": "rejected"}


def save(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(folder, rows, stage="sft", options=None, **entry):
    path = save(folder, rows)
    return read_examples(resolve_dataset({"file_name": str(path), **entry}, {}), stage=stage, **(options or {}))


def read_bare(folder, rows, stage="sft", name="rows.jsonl"):
    return read_examples(resolve_dataset(str(save(folder, rows, name)), {}), stage=stage)


def qa(n):
    return [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(n)]


def questions(examples):
    return [example.messages[0].content for example in examples]


def test_rows_in_are_rows_out_and_rejected_rows_with_their_place(tmp_path):
    rows = [*qa(2), {"instruction": "q", "output": None}, {"instruction": "q", "output": {"a": 1}}, "text"]
    examples, report = read(tmp_path, rows)
    assert (report.rows_in, report.rows_out, len(examples)) == (5, 3, 3)
    assert [(s.row, why) for s, why in report.rejected] == [
        (3, "the reply is empty"),
        (5, "the row is text, not an object"),
    ]
    assert [(s.row, what) for s, what in report.fixed] == [(4, "output is an object; written as JSON text")]
    assert str(examples[2].source).endswith("rows.jsonl row 4")
    assert {example.dataset for example in examples} == {str(tmp_path / "rows.jsonl")}


def test_max_samples_looks_at_the_first_rows_and_says_so(tmp_path):
    examples, report = read(tmp_path, [{"instruction": "", "output": ""}, *qa(9)], options={"max_samples": 3})
    assert questions(examples) == ["q0", "q1"]
    assert (report.rows_in, report.rows_out) == (3, 2)
    assert "the first 3 rows were taken (max_samples)" in report.notes[-1]
    assert read(tmp_path, qa(2), options={"max_samples": 3})[1].notes == []


def test_num_samples_draws_by_seed_and_repeats_only_when_it_must(tmp_path):
    few = [questions(read(tmp_path, qa(10), num_samples=4, options={"seed": s})[0]) for s in (1, 1, 2)]
    assert few[0] == few[1] != few[2]
    assert len(set(few[0])) == 4
    many, report = read(tmp_path, qa(3), num_samples=8)
    assert set(questions(many)[:3]) == {"q0", "q1", "q2"}
    assert (len(many), report.rows_in, report.rows_out) == (8, 8, 8)
    assert read(tmp_path, [], num_samples=8)[0] == []


def test_shards_come_in_sorted_order_with_their_own_row_numbers(tmp_path):
    save(tmp_path, [{"instruction": "b", "output": "x"}], "b.jsonl")
    save(tmp_path, [{"instruction": "a", "output": "x"}, {"instruction": "", "output": "x"}], "a.jsonl")
    examples, report = read_examples(load_registry({"s": {"file_name": str(tmp_path)}})["s"], stage="sft")
    assert [(Path(e.source.file).name, e.source.row) for e in examples] == [("a.jsonl", 1), ("b.jsonl", 1)]
    assert Path(report.rejected[0][0].file).name == "a.jsonl"


def test_an_odd_encoding_is_reported_for_the_file(tmp_path):
    (tmp_path / "a.csv").write_bytes("instruction,output\n打印机卡纸了,请派人来修\n".encode("gb18030"))
    _, report = read_examples(resolve_dataset({"file_name": str(tmp_path / "a.csv")}, {}), stage="sft")
    assert [(s.row, what) for s, what in report.fixed] == [(0, "not UTF-8; read as GB18030")]
    assert str(report.fixed[0][0]).endswith("a.csv")


def test_a_missing_column_is_an_error_with_the_columns_there(tmp_path):
    with pytest.raises(RecipeError, match=r"has no column 'output'. It has: instruction, ouptut_text") as caught:
        read(tmp_path, [{"instruction": "q", "ouptut_text": "a"}])
    assert "rows.jsonl" in str(caught.value)
    with pytest.raises(RecipeError, match=r"columns.response: .* has no column 'reply'. Did you mean 'replay'\?"):
        read(tmp_path, [{"instruction": "q", "replay": "a"}], columns={"response": "reply"})
    with pytest.raises(RecipeError, match=r"val_group_by: .* no column 'persn'. Did you mean 'person'\?"):
        read(tmp_path, [{"instruction": "q", "output": "a", "person": 1}], options={"group_by": "persn"})


def test_a_row_that_alone_lacks_the_column_is_rejected(tmp_path):
    _, report = read(tmp_path, [*qa(2), {"instruction": "q"}])
    assert report.reasons() == {"no column 'output'": 1}


def test_the_group_column_is_carried(tmp_path):
    rows = [{"instruction": "q", "output": "a", "who": who} for who in (7, "x", None)]
    examples, _ = read(tmp_path, rows, options={"group_by": "who"})
    assert [example.group for example in examples] == ["7", "x", None]


def test_a_default_column_that_llamafactory_would_leave_out_is_told(tmp_path):
    rows = [{"instruction": "q", "input": "more", "answer": "a"}]
    examples, report = read(tmp_path, rows, columns={"prompt": "instruction", "response": "answer"})
    assert questions(examples) == ["q\nmore"]
    assert "columns does not name query from 'input'" in report.notes[0]
    examples, report = read(tmp_path, rows, columns={"response": "answer", "prompt": "instruction", "query": None})
    assert (questions(examples), report.notes) == (["q"], [])
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "u", "value": "q"},
                {"from": "gpt", "value": "a"},
            ]
        }
    ]
    _, report = read(tmp_path, rows, formatting="sharegpt", tags={"user_tag": "u"})
    assert "tags does not name assistant_tag from 'gpt', system_tag from 'system'" in report.notes[0]


def test_chatglm3s_conversations_are_recognised(tmp_path):
    message = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    for entry in ({}, {"formatting": "sharegpt"}):
        path = save(tmp_path, [{"conversations": message}])
        given = {"file_name": str(path), **entry} if entry else str(path)
        examples, report = read_examples(resolve_dataset(given, {}), stage="sft")
        assert [m.role for m in examples[0].messages] == ["user", "assistant"]
        assert examples[0].messages[1].train is False
        assert '"formatting": "openai"' in report.notes[0]


def test_openai_entries_find_messages_without_a_mapping(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    examples, report = read(tmp_path, rows, formatting="openai")
    assert questions(examples) == ["q"]
    assert '"messages": "messages"' in report.notes[0]


@pytest.mark.parametrize(
    ("row", "stage", "note"),
    [
        ({"instruction": "q", "input": "x", "output": "a"}, "sft", '{"formatting": "alpaca"}'),
        ({"question": "q", "answer": "a", "id": 3}, "sft", '"prompt": "question", "query": null, "response": "answer"'),
        ({"instruction": "i", "question": "q", "answer": "a"}, "sft", '"query": "question"'),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo", '"ranking": true'),
        ({"prompt": "q", "completion": "a", "label": True}, "kto", '"kto_tag": "label"'),
        ({"text": "x", "id": 1}, "pt", '{"formatting": "text"}'),
        ({"question": "q"}, "prompt", '"prompt": "question"'),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sft", '"sharegpt"'),
        (
            {"conversations": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
            "sft",
            "openai",
        ),
    ],
)
def test_a_bare_file_is_read_by_its_columns_and_the_note_says_how(row, stage, note, tmp_path):
    examples, report = read_bare(tmp_path, [row], stage)
    assert len(examples) == 1
    assert note in report.notes[0]
    assert ("left aside: id" in report.notes[0]) == ("id" in row and stage != "pt")


def test_a_bare_file_with_unknown_columns_says_what_to_write(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot tell which columns to read at stage sft; it has frage, antwort"):
        read_bare(tmp_path, [{"frage": "q", "antwort": "a"}])
    examples, report = read_bare(tmp_path, [])
    assert (examples, report.rows_in) == ([], 0)


def test_text_files_need_no_mapping_at_stage_pt(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    for given in (str(tmp_path / "a.txt"), {"file_name": str(tmp_path / "a.txt")}):
        examples, _ = read_examples(resolve_dataset(given, {}), stage="pt")
        assert [example.text for example in examples] == ["one", "two"]
    whole = {"file_name": str(tmp_path / "a.txt"), "formatting": "text", "document": "file"}
    assert [e.text for e in read_examples(resolve_dataset(whole, {}), stage="pt")[0]] == ["one\ntwo\n"]


def test_stage_pt_says_that_it_leaves_replies_aside(tmp_path):
    examples, report = read(tmp_path, qa(1), "pt")
    assert examples[0].text == "q0"
    assert "stage pt learns the prompt columns; 'output' is not read" in report.notes[0]


@pytest.mark.parametrize(
    ("stage", "entry", "words"),
    [
        ("dpo", {}, 'the entry needs "ranking": true'),
        ("rm", {"ranking": True}, "columns.chosen: needed at stage rm"),
        ("sft", {"ranking": True, "columns": PAIR}, '"ranking": true is for stages rm and dpo, not for sft'),
        ("pt", {"ranking": True, "columns": PAIR}, '"ranking": true is for stages'),
        ("kto", {}, "columns.kto_tag: needed at stage kto"),
        ("sft", {"columns": {"kto_tag": "ok"}}, "columns.kto_tag: its bad replies are for stage kto"),
        ("pt", {"formatting": "sharegpt"}, "stage pt learns plain text, not conversations"),
        ("sft", {"formatting": "text"}, "plain text is for stage pt, not for sft"),
    ],
)
def test_an_entry_of_another_stage_is_one_clear_message(stage, entry, words, tmp_path):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, qa(1), stage, **entry)
    assert words in str(caught.value)
    assert "rows.jsonl" in str(caught.value)


def test_deeply_nested_rows_are_rejected_or_told_never_fatal(tmp_path):
    path = tmp_path / "a.jsonl"
    ends = set()
    for depth in range(500, 1100, 4):
        deep = "[" * depth + "]" * depth
        path.write_text(f'{{"instruction": "q", "output": {deep}}}\n{{"instruction": "q", "output": "a"}}\n')
        try:
            examples, report = read_examples(resolve_dataset({"file_name": str(path)}, {}), stage="sft")
        except RecipeError:
            ends.add("told")  # too deep even for the JSON parser
            continue
        assert report.rows_in == report.rows_out + len(report.rejected) == 2
        assert len(examples) == report.rows_out
        ends.update(report.reasons() or {"read"})
    assert {"told", "read"} <= ends


def test_a_hub_data_set_reads_through_its_library_from_a_local_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    save(tmp_path / "set", qa(3), "train.jsonl")
    entry = load_registry({"s": {"hf_hub_url": str(tmp_path / "set")}})["s"]
    examples, report = read_examples(entry, stage="sft")
    assert questions(examples) == ["q0", "q1", "q2"]
    assert str(examples[0].source) == f"hf:{tmp_path / 'set'} row 1"
    assert report.rows_out == 3


def test_a_hub_that_cannot_be_had_is_one_message(tmp_path):
    missing = load_registry({"s": {"hf_hub_url": str(tmp_path / "nowhere")}, "m": {"ms_hub_url": "a/b"}})
    with pytest.raises(RecipeError, match=r"'s'.*cannot be read from Hugging Face .*use file_name"):
        read_examples(missing["s"], stage="sft")
    with pytest.raises(RecipeError, match=r"modelscope"):
        read_examples(missing["m"], stage="sft")


LOCAL = {
    "identity": ("sft", 91),
    "alpaca_en_demo": ("sft", 999),
    "alpaca_zh_demo": ("sft", 1000),
    "glaive_toolcall_en_demo": ("sft", 300),
    "glaive_toolcall_zh_demo": ("sft", 300),
    "dpo_en_demo": ("dpo", 300),
    "dpo_zh_demo": ("rm", 300),
    "kto_en_demo": ("kto", 300),
    "wiki_demo": ("pt", 30),
    "c4_demo": ("pt", 300),
}


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared")
@pytest.mark.parametrize("name", LOCAL)
def test_llamafactorys_demo_sets_read_whole(name):
    stage, rows = LOCAL[name]
    examples, report = read_examples(load_registry(DATA / "llamafactory")[name], stage=stage)
    assert (report.rows_in, report.rows_out, len(examples)) == (rows, rows, rows)
    assert (report.rejected, report.fixed, report.notes) == ([], [], [])


BARE = {
    "clinc_intent/train.jsonl": ("sft", 1000, 1000),
    "crosswoz/slot_extract_train.jsonl": ("sft", 1500, 1500),
    "crosswoz/dialogues_train_400.json": ("sft", 400, 400),
    "fastchat/dummy_conversation.json": ("sft", 500, 500),
    "own/legal_qa.csv": ("sft", 37, 25),  # twelve questions are empty cells
    "own/insurance_faq.jsonl": ("sft", 16, 16),
    "gsm8k/train_1500.jsonl": ("sft", 1500, 1500),
    "law/statutes_qa.jsonl": ("sft", 500, 500),
    "llamafactory/reason_tool_use_demo_50.jsonl": ("sft", 50, 50),
    "llamafactory/wiki_demo.txt": ("pt", 30, 30),
    "llamafactory/dpo_zh_demo.json": ("dpo", 300, 300),
    "llamafactory/kto_en_demo.json": ("kto", 300, 300),
    "belle/eval_set.jsonl": ("prompt", 1000, 1000),
}


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared")
@pytest.mark.parametrize("path", BARE)
def test_real_files_read_without_an_entry(path):
    stage, rows_in, rows_out = BARE[path]
    examples, report = read_examples(resolve_dataset(str(DATA / path), {}), stage=stage)
    assert (report.rows_in, report.rows_out, len(examples)) == (rows_in, rows_out, rows_out)
    assert len(report.rejected) == rows_in - rows_out


def test_a_row_as_long_as_a_file_is_left_out_by_its_number(tmp_path):
    path = tmp_path / "long.jsonl"
    long = json.dumps({"instruction": "q", "output": "word " * (LONGEST_ROW // 5)})
    path.write_text(f'{{"instruction": "q", "output": "a"}}\n{long}\n', encoding="utf-8")
    examples, report = read_examples(resolve_dataset(str(path), {}), stage="sft")
    assert (report.rows_in, len(examples)) == (2, 1)
    assert [(source.row, reason) for source, reason in report.rejected] == [
        (2, "10,000,001 characters; a row may have 10,000,000: cut it into several")
    ]
