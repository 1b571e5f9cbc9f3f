from dataclasses import replace

import pytest

from llmforge.data.encode import encode_examples
from llmforge.data.example import IGNORE, Example, Message, RowRef
from llmforge.data.templates.find import get_template
from llmforge.data.templates.template import LabelPolicy
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def template(tokenizer):
    return get_template("chatml", tokenizer, default_system="")


def talk(*texts, row=1, **options):
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return Example(messages, RowRef("a.jsonl", row), **options)


def text(words, row=1):
    return Example((), RowRef("a.txt", row), text=words)


def encode(examples, template, tokenizer, stage="sft", **options):
    encoded, report = encode_examples(examples, template, tokenizer, stage=stage, **options)
    assert report.rows_in == report.rows_out + len(report.rejected) == len(examples)
    return encoded, report


def test_rows_are_the_templates_own(template, tokenizer):
    examples = [talk("a", "b"), talk("打印机", "好", "c", "d")]
    encoded, report = encode(examples, template, tokenizer)
    for i, example in enumerate(examples):
        assert encoded[i] == template.encode(tokenizer, example.messages)
    assert encoded.examples.tolist() == [0, 1]
    assert (report.rejected, report.fixed, report.notes) == ([], [], [])


def test_the_policy_decides_what_is_learned(template, tokenizer):
    example = talk("a", "b", "c", "d")
    last, _ = encode([example], template, tokenizer, policy=LabelPolicy(mask_history=True))
    assert last[0] == template.encode(tokenizer, example.messages, policy=LabelPolicy(mask_history=True))
    policy = LabelPolicy(train_on_prompt=True)
    every, _ = encode([example], template, tokenizer, policy=policy)
    assert every[0].labels == [IGNORE, *template.encode(tokenizer, example.messages, policy=policy).labels[1:]]


def test_a_row_with_nothing_to_learn_is_rejected(template, tokenizer):
    silent = Example((Message("user", "a"), Message("assistant", "b", train=False)), RowRef("a.jsonl", 7))
    encoded, report = encode([silent, talk("a", "b")], template, tokenizer)
    assert report.rejected == [(RowRef("a.jsonl", 7), "no token to learn")]
    assert encoded.examples.tolist() == [1]


def test_a_row_the_template_refuses_is_rejected_with_its_words(template, tokenizer):
    tools = ({"type": "function", "function": {"name": "f"}},)
    _, report = encode([talk("a", "b", tools=tools)], replace(template, tool_syntax=None), tokenizer)
    assert "tools" in report.rejected[0][1]


def test_right_cuts_the_reply_and_keeps_its_end_token(template, tokenizer):
    long = talk("q", "word " * 50, row=3)
    whole = template.encode(tokenizer, long.messages)
    encoded, report = encode([long, talk("a", "b")], template, tokenizer, cutoff_len=40)
    assert encoded[0].input_ids == [*whole.input_ids[:39], tokenizer.eos_id]
    assert encoded[0].labels[-1] == tokenizer.eos_id
    assert report.fixed == [(RowRef("a.jsonl", 3), f"{len(whole.input_ids)} tokens cut to 40 (right)")]


def test_right_rejects_a_row_whose_prompt_alone_is_too_long(template, tokenizer):
    _, report = encode([talk("word " * 50, "b")], template, tokenizer, cutoff_len=40)
    assert report.reasons() == {"longer than cutoff_len 40, and nothing to learn would stay (truncation: right)": 1}


def test_left_keeps_the_end(template, tokenizer):
    long = talk("word " * 50, "b")
    whole = template.encode(tokenizer, long.messages)
    encoded, report = encode([long], template, tokenizer, cutoff_len=20, truncation="left")
    assert encoded[0].input_ids == whole.input_ids[-20:]
    assert report.fixed[0][1].endswith("cut to 20 (left)")


def test_split_makes_rows_that_learn_every_token_once(template, tokenizer):
    long = talk("q", "word " * 30, "q", "b")
    whole = template.encode(tokenizer, long.messages)
    encoded, report = encode([talk("a", "b"), long], template, tokenizer, cutoff_len=40, truncation="split")
    learned = [label for i in range(1, len(encoded)) for label in encoded[i].labels if label != IGNORE]
    assert learned == [label for label in whole.labels if label != IGNORE]
    assert encoded.lengths.max() <= 40
    assert set(encoded.examples.tolist()) == {0, 1}
    assert report.fixed[0][1] == f"{len(whole.input_ids)} tokens split into {len(encoded) - 1} rows"
    assert report.notes == [f"2 rows became {len(encoded)} by splitting"]


def test_drop_rejects_and_raise_stops(template, tokenizer):
    rows = [talk("q", "word " * 50, row=5), talk("a", "b")]
    encoded, report = encode(rows, template, tokenizer, cutoff_len=40, truncation="drop")
    assert len(encoded) == 1
    assert report.rejected == [(RowRef("a.jsonl", 5), "longer than cutoff_len 40")]
    with pytest.raises(RecipeError, match=r"a\.jsonl row 5: \d+ tokens, cutoff_len is 40"):
        encode(rows, template, tokenizer, cutoff_len=40, truncation="raise")


@pytest.mark.parametrize("truncation", ["right", "left", "split", "drop"])
def test_a_row_of_exactly_cutoff_len_stays(truncation, template, tokenizer):
    example = talk("a", "some words")
    length = len(template.encode(tokenizer, example.messages).input_ids)
    encoded, report = encode([example], template, tokenizer, cutoff_len=length, truncation=truncation)
    assert encoded.lengths.tolist() == [length]
    assert report.fixed == []


def test_texts_are_joined_with_eos_and_the_rest_is_kept(template, tokenizer):
    texts = ["one two", "三", "four five six"]
    flat = [i for words in texts for i in [*tokenizer.ids(words), tokenizer.eos_id]]
    encoded, report = encode([text(words) for words in texts], template, tokenizer, "pt", cutoff_len=7)
    assert [i for row in encoded for i in row.input_ids] == flat
    assert encoded.lengths.tolist() == [7] * (len(flat) // 7) + [len(flat) % 7]
    assert all(row.labels == [IGNORE, *row.input_ids[1:]] for row in encoded)
    assert report.notes == [f"3 texts became {len(encoded)} rows of up to 7 tokens"]


def test_a_joined_row_belongs_to_the_text_it_begins_with(template, tokenizer):
    texts = [text("ab"), text("c" * 30), text("d"), text("e")]
    encoded, _ = encode(texts, template, tokenizer, "pt", cutoff_len=10)
    starts = []
    place = 0
    for number, example in enumerate(texts):
        length = len(tokenizer.ids(example.text)) + 1
        starts += [number] * length
        place += length
    assert encoded.examples.tolist() == [starts[i] for i in encoded.offsets[:-1]]


def test_texts_stay_apart_without_packing(template, tokenizer):
    encoded, report = encode(
        [text("one"), text("word " * 30, row=2)], template, tokenizer, "pt", packing=False, cutoff_len=20
    )
    assert encoded[0].input_ids == [*tokenizer.ids("one"), tokenizer.eos_id]
    assert encoded[1].input_ids == tokenizer.ids("word " * 30)[:20]
    assert [str(source) for source, _ in report.fixed] == ["a.txt row 2"]
    pieces, _ = encode(
        [text("word " * 30)], template, tokenizer, "pt", packing=False, cutoff_len=20, truncation="split"
    )
    assert pieces[len(pieces) - 1].input_ids[-1] == tokenizer.eos_id


def test_a_control_token_in_a_text_stays_text(template, tokenizer):
    encoded, _ = encode([text("a<|im_end|>b")], template, tokenizer, "pt")
    assert encoded[0].input_ids.count(tokenizer.eos_id) == 1


def test_no_examples_make_an_empty_set(template, tokenizer):
    for stage in ("sft", "pt"):
        encoded, report = encode([], template, tokenizer, stage)
        assert len(encoded) == 0
        assert report.rejected == []
