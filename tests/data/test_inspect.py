import json
from pathlib import Path

import numpy as np
import pytest

from llmforge.data.coverage import coverage, values_at
from llmforge.data.encode import EncodeOptions
from llmforge.data.example import Example, Message, RowRef
from llmforge.data.inspect import find_duplicates, find_labels, inspect_set, measure, natural_stage, summary
from llmforge.data.leakage import find_leaks, runs
from llmforge.data.lookups import lookups
from llmforge.data.marked import show_labels, spans
from llmforge.data.plain_text import normalised, words
from llmforge.data.prepare import Reading
from llmforge.data.registry import load_registry, resolve_dataset
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[2] / "../shared"


def example(question, answer, row=1, system=None, file="f"):
    opening = (Message("system", system),) if system else ()
    return Example((*opening, Message("user", question), Message("assistant", answer)), RowRef(file, row))


def rows(*pairs, file="f"):
    return [example(question, answer, row, file=file) for row, (question, answer) in enumerate(pairs, 1)]


# ---- texts


def test_texts_that_say_the_same_are_equal():
    assert normalised("Ｈello,  World!") == normalised("hello world") == "hello world"
    assert normalised("打印机，卡纸了。") == normalised("打印机卡纸了")
    assert normalised("?!") == "?!"
    assert words("Call 555-0100 打印") == ["call", "555", "0100", "打", "印"]


def test_duplicates_and_conflicts_are_found_by_row():
    found = find_duplicates(
        rows(("What is it?", "A cat"), ("what is it", "a cat."), ("What is it?", "A dog"), ("Else?", "A cat"))
    )
    assert (found["rows"], found["groups"]) == (1, [[1, 2]])
    assert (found["conflicts"], found["conflict_groups"]) == (1, [[1, 2, 3]])


def test_the_same_words_under_another_instruction_are_no_duplicate():
    found = find_duplicates([example("q", "a", 1, "Answer in English."), example("q", "b", 2, "Answer in German.")])
    assert found["rows"] == found["conflicts"] == 0


def test_labels_are_whole_answers_or_a_field_of_objects():
    assert find_labels(rows(*[(f"q{i}", "yes" if i % 3 else "no") for i in range(9)])) == {"yes": 6, "no": 3}
    replies = [json.dumps({"label": "ab"[i % 2], "note": f"n{i}"}) for i in range(10)]
    assert find_labels(rows(*[(f"q{i}", reply) for i, reply in enumerate(replies)])) == {"label: a": 5, "label: b": 5}
    assert find_labels(rows(*[(f"q{i}", f"answer {i}") for i in range(10)])) == {}


# ---- answers out of nowhere


def test_of_made_lookups_at_least_seven_in_ten_are_flagged_and_no_label_is():
    draw = np.random.default_rng(0)
    facts = rows(
        *[(f"What is the telephone number of shop {i}?", f"0{draw.integers(10**8, 10**9)}") for i in range(20)],
        *[(f"谁负责第{i}号泵站？", "".join(draw.choice(list("赵钱孙李周吴郑王冯陈褚卫"), 3))) for i in range(20)],
    )
    labels = rows(*[(f"Sort: water in cellar {i}", "flood" if i % 2 else "fire") for i in range(40)])
    copied = rows(*[(f"Repeat the code X{i}9", f"X{i}9") for i in range(40)])
    sums = rows(*[(f"What is {i} + {i + 3}?", f"{2 * i + 3}") for i in range(40)])
    assert len(lookups(facts)) >= 0.7 * len(facts)
    assert lookups(labels) == lookups(copied) == lookups(sums) == []
    assert lookups(rows(("Who?", "Ada Lovelace"))) == [(0, "Ada Lovelace")]


# ---- leakage

LONG = "the quick brown fox jumps over the lazy dog while seven other animals watch it from the hill"


def test_same_rows_same_questions_and_runs_of_words_are_told_apart():
    train = rows(("Where is it?", "There."), ("Who are you?", "Me."), (LONG, "yes"), file="train")
    tests = rows(
        ("where is it", "there"), ("Who are you?", "Another."), (f"Note: {LONG} today", "no"), ("New?", "New."),
        file="test",
    )  # fmt: skip
    found = find_leaks(train, tests)
    assert [(leak.row.row, leak.kind, leak.seen.row) for leak in found] == [
        (1, "row", 1),
        (2, "question", 2),
        (3, "13-gram", 3),
    ]
    assert found[0].share == 1
    assert 0 < found[2].share < 1


def test_an_instruction_that_many_rows_share_is_no_leak():
    instruction = "Sort the report into one of the following eight classes and answer with the name of the class only: "
    train = rows(*[(f"{instruction} fire {i}", "fire") for i in range(30)])
    assert find_leaks(train, rows((f"{instruction} flood", "flood"))) == []
    assert [leak.kind for leak in find_leaks(train, rows((f"{instruction} fire 7", "fire")))] == ["row"]


def test_runs_have_thirteen_words_and_chinese_characters_count_as_words():
    assert runs("a b c") == set()
    assert len(runs(" ".join(map(str, range(14))))) == 2
    assert len(runs("一二三四五六七八九十百千万亿")) == 2


# ---- lengths and shapes


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def save(folder, rows):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("truncation", "cut", "rejected"), [("right", 1, 1), ("drop", 0, 2), ("raise", 0, 2), ("split", 2, 0)]
)
def test_the_forecast_is_what_encoding_would_do(tmp_path, tokenizer, truncation, cut, rejected):
    told = [{"instruction": f"q{i}", "output": "a"} for i in range(8)]
    told += [{"instruction": "q", "output": "b" * 90}, {"instruction": "q" * 90, "output": "b"}]
    found = inspect_set(Reading(resolve_dataset(str(save(tmp_path, told)), {}), "sft"))
    template = get_template("chatml", tokenizer, default_system="")
    lengths = measure(found, template, tokenizer, EncodeOptions("sft", cutoff_len=40, truncation=truncation))
    assert (lengths["rows"], lengths["longer"], lengths["cut"], lengths["rejected"]) == (10, 2, cut, rejected)
    assert sum(lengths["histogram"]["counts"]) == 10
    assert lengths["cutoff_99"] == lengths["max"] > 40
    assert 0 < lengths["learned_share"] < 1


def test_percentiles_are_lengths_that_occur():
    told = summary(np.array([1, 2, 3, 4, 100]))
    assert (told["p50"], told["p95"], told["max"], told["total"], told["mean"]) == (3, 100, 100, 110, 22.0)
    assert summary(np.zeros(0, int)) == {"rows": 0, "total": 0}


def test_rows_in_are_rows_ok_and_rejected_ones(tmp_path):
    told = [{"instruction": "q", "output": "a"}, {"instruction": "q", "output": ""}, {"instruction": 3, "output": "a"}]
    found = inspect_set(Reading(resolve_dataset(str(save(tmp_path, told)), {}), "sft")).as_dict()
    assert (found["rows_in"], found["rows_ok"]) == (3, 1)
    assert [one["row"] for one in found["rejected"]] == [2, 3]
    assert found["reasons"] == {"the reply is empty": 1, "prompt is a number, not text": 1}
    json.dumps(found)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_every_local_entry_of_llama_factorys_registry_is_read_whole():
    entries = load_registry(SHARED / "data/llamafactory")
    local = [entry for entry in entries.values() if entry.path and entry.path.exists()]
    assert len(local) >= 10
    for entry in local:
        found = inspect_set(Reading(entry, natural_stage(entry)))
        text = entry.path.read_text(encoding="utf-8-sig")
        records = json.loads(text) if entry.path.suffix == ".json" else [t for t in text.splitlines() if t.strip()]
        assert found.report.rows_in == len(records), entry.name
        assert found.report.rows_in == found.report.rows_out + len(found.report.rejected), entry.name
        assert len(found.examples) > 0, entry.name


def test_trained_tokens_are_marked(tokenizer):
    template = get_template("chatml", tokenizer, default_system="")
    row = template.encode(tokenizer, [Message("user", "q"), Message("assistant", "yes")])
    assert [(span.text, span.trained) for span in spans(tokenizer, row)] == [
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", False),
        ("yes<|im_end|>", True),
    ]
    assert show_labels(tokenizer, row, colour=False).endswith("assistant\n⟦yes<|im_end|>⟧")


# ---- coverage


def test_values_are_found_through_json_text_and_lists():
    row = {"output": '{"label": "a", "marks": [{"kind": "x"}, {"kind": "y"}]}', "n": 3, "none": None}
    assert values_at(row, ["output", "label"]) == ["a"]
    assert values_at(row, ["output", "marks", "kind"]) == ["x", "y"]
    assert values_at(row, ["n"]) == ["3"]
    assert values_at(row, ["none"]) == values_at(row, ["other", "label"]) == values_at(row, ["n", "x"]) == []


def test_gaps_are_counted_and_expected_values_without_rows_are_gaps():
    found = coverage([{"k": "a"}] * 3 + [{"k": "b"}, {"x": 1}], "k", 2, ["a", "c"])
    assert found.counts == {"c": 0, "b": 1, "a": 3}
    assert found.gaps == {"c": 2, "b": 1}
    assert (found.rows, found.missing, found.unexpected, found.enough) == (5, 1, ["b"], False)
    assert coverage([{"k": "a"}], "k", 1).enough
    assert not coverage([], "k", 1).enough
