"""Pairs, scored lists and verdicts: how rows are read, and how they are encoded as groups."""

import json
from pathlib import Path

import pytest

from llmforge.data.encode import EncodeOptions, InMemory, encode_stream
from llmforge.data.encode_groups import row_encoder
from llmforge.data.entry import Columns, DatasetEntry
from llmforge.data.example import FILL, IGNORE, Encoded, EncodedSet
from llmforge.data.groups import (
    DESIRED,
    UNDESIRED,
    UNRELATED,
    MemberNumbers,
    Members,
    first_and_rest,
    join_group,
    member_offsets,
    open_group,
)
from llmforge.data.marked import show_labels
from llmforge.data.read import read_examples
from llmforge.data.registry import load_registry
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

DEMO = Path(__file__).parents[2] / "../shared/data/llamafactory"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def read(rows, tmp_path, stage="dpo", columns=None, formatting="alpaca", ranking=True):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    given = columns or {"chosen": "chosen", "rejected": "rejected"}
    entry = DatasetEntry("rows", path, None, formatting, ranking, columns=Columns(**given), named=frozenset(given))
    return read_examples(entry, stage=stage)


def encode(examples, tokenizer, stage="dpo", **options):
    sink = InMemory()
    encoder = row_encoder(get_template("chatml", tokenizer), tokenizer, EncodeOptions(stage, **options))
    outcome = encode_stream(iter(examples), encoder, sink)
    return sink.finish(), outcome


# The form of a group


def test_a_group_opens_into_what_was_joined():
    members = [Encoded([5, 6, 7], [IGNORE, 6, 7]), Encoded([5, 8], [IGNORE, 8])]
    group = join_group(members, [1, 0])
    assert open_group(group) == (members, [1, 0])
    assert open_group(members[0]) == ([members[0]], [0])
    (kept,) = EncodedSet.of([group])
    assert open_group(kept) == (members, [1, 0])
    assert EncodedSet.of([group]).learned.tolist() == [3]


def test_a_group_costs_its_shared_start_once():
    prompt = list(range(40))
    members = [Encoded([*prompt, *reply], [IGNORE] * 40 + reply) for reply in ([50, 51, 52], [60])]
    group = join_group(members, [1, 0])
    assert first_and_rest(group, share=True)[1] == 1
    assert first_and_rest(group, share=False)[1] == 41


def test_members_of_one_mark_and_their_numbers():
    members = [Encoded([5, n], [IGNORE, n]) for n in (6, 7)]
    rows = [join_group(members, [DESIRED, UNRELATED]), join_group(members, [UNDESIRED, UNRELATED])]
    others, aside = (Members(rows, UNRELATED, inside) for inside in (False, True))
    assert open_group(others[1]) == ([members[0]], [UNDESIRED])
    assert open_group(aside[0]) == ([members[1]], [UNRELATED])
    assert MemberNumbers(member_offsets(rows), member_offsets([*rows, *rows])[:4]).take([1, 0]).tolist() == [4, 6, 0, 2]


# Reading


def test_scored_replies_become_ranks(tmp_path, tokenizer):
    row = {"instruction": "Say a.", "answers": ["a", "b", "c", "d"], "points": [3, 2.5, 2.5, -1]}
    columns = {"replies": "answers", "scores": "points"}
    (example,), report = read([row], tmp_path, columns=columns)
    assert (example.chosen.content, example.rejected.content) == ("a", "d")
    assert not report.rejected
    (group,), _ = encode([example], tokenizer)
    members, marks = open_group(group)
    assert marks == [2, 1, 1, 0]
    assert [tokenizer.decode([t for t in member.labels if t >= 0]) for member in members] == [
        f"{word}<|im_end|>" for word in "abcd"
    ]


@pytest.mark.parametrize(
    ("replies", "scores", "reason"),
    [
        (["a", "b"], [1], "2 replies have 1 scores"),
        (["a", "b"], [1, 1], "no reply has a higher score than another"),
        (["a", ""], [2, 1], "reply 2 is empty"),
        (["a", "a"], [2, 1], "reply 2 is the same as another of score 2, and its own is 1"),
        (["a", "b"], [2, "1"], "score 2 is text, not a number"),
        (["a", "b"], [float("nan"), 1], "score 1 is nan, not a number"),
        ("a", [1], "the replies is not valid JSON"),
    ],
)
def test_scores_that_cannot_be_compared_are_named(replies, scores, reason, tmp_path):
    row = {"instruction": "Say a.", "replies": replies, "scores": scores}
    examples, report = read([row], tmp_path, columns={"replies": "replies", "scores": "scores"})
    assert not examples
    assert [found for _, found in report.rejected] == [reason]


def test_conversations_take_scored_replies_as_texts_or_messages(tmp_path):
    row = {
        "conversations": [{"from": "human", "value": "Say a."}],
        "replies": ["a", {"from": "gpt", "value": "b"}],
        "scores": [0, 1],
    }
    (example,), _ = read([row], tmp_path, columns={"replies": "replies", "scores": "scores"}, formatting="sharegpt")
    assert (example.chosen.content, example.rejected.content) == ("b", "a")


def test_a_ranking_set_without_columns_is_refused_in_words(tmp_path):
    with pytest.raises(RecipeError, match=r"columns\.scores: needed at stage rm"):
        read([{"instruction": "a", "replies": []}], tmp_path, stage="rm", columns={"replies": "replies"})


# Encoding


def pair(chosen="a", rejected="b", ask="Say a."):
    return {"instruction": ask, "chosen": chosen, "rejected": rejected}


def test_only_the_last_reply_of_a_pair_is_learned(tmp_path, tokenizer):
    rows = [{**pair(), "history": [["Hi", "Ho"]]}]
    (example,), _ = read(rows, tmp_path, columns={"chosen": "chosen", "rejected": "rejected", "history": "history"})
    (group,), _ = encode([example], tokenizer)
    for member, word in zip(open_group(group)[0], "ab", strict=True):
        assert tokenizer.decode([label for label in member.labels if label >= 0]) == f"{word}<|im_end|>"
        assert "Ho" in tokenizer.decode(member.input_ids)


def test_replies_are_filled_up_to_equal_length_where_tokens_are_compared(tmp_path, tokenizer):
    (example,), _ = read([pair("a", "b and so on")], tmp_path)
    (group,), _ = encode([example], tokenizer, stage="rm", fill=True)
    short, long = open_group(group)[0]
    assert len(short.input_ids) == len(long.input_ids)
    missing = short.labels.count(FILL)
    assert missing > 0
    assert short.input_ids[-missing:] == [tokenizer.pad_id] * missing
    assert FILL not in long.labels


def test_a_verdict_comes_with_the_next_rows_reply(tmp_path, tokenizer):
    rows = [{"instruction": f"Say {w}.", "output": w, "label": w != "b"} for w in ("a", "b", "c")]
    columns = {"prompt": "instruction", "response": "output", "kto_tag": "label"}
    examples, _ = read(rows, tmp_path, stage="kto", columns=columns, ranking=False)
    groups, _ = encode(examples, tokenizer, stage="kto")
    for group, mark, own, other in zip(
        groups, (DESIRED, UNDESIRED, DESIRED), ("a", "b", "c"), ("b", "c", "a"), strict=True
    ):
        members, marks = open_group(group)
        assert marks == [mark, UNRELATED]
        learned = [tokenizer.decode([t for t in m.labels if t >= 0]) for m in members]
        assert learned == [f"{own}<|im_end|>", f"{other}<|im_end|>"]
        assert all(f"Say {own}." in tokenizer.decode(member.input_ids) for member in members)


def test_a_group_is_shown_member_by_member(tmp_path, tokenizer):
    (example,), _ = read([pair()], tmp_path)
    (group,), _ = encode([example], tokenizer)
    shown = show_labels(tokenizer, group, colour=False).splitlines()
    assert shown[0].startswith("[1] ")
    assert sum("⟦" in line for line in shown) == 2


def test_too_long_pairs_are_cut_alike_for_both_or_left_out(tmp_path, tokenizer):
    rows = [pair("x " * 60 + "a", "x " * 60 + "b"), pair(ask="y " * 90), pair("x " * 60, "y " * 60)]
    examples, _ = read(rows, tmp_path)
    groups, outcome = encode(examples, tokenizer, cutoff_len=60)
    assert [number for number, _ in outcome.rejected] == [0, 1]
    assert "are the same within cutoff_len 60" in outcome.rejected[0][1]
    assert "no room for the reply" in outcome.rejected[1][1]
    assert [number for number, _ in outcome.fixed] == [2]
    assert all(len(member.input_ids) <= 60 for member in open_group(groups[0])[0])
    with pytest.raises(RecipeError, match=r"row 1: \d+ tokens, cutoff_len is 60"):
        encode(examples, tokenizer, cutoff_len=60, truncation="raise")


@pytest.mark.skipif(not DEMO.exists(), reason="the shared data sets are not here")
@pytest.mark.parametrize(("name", "stage"), [("dpo_en_demo", "dpo"), ("dpo_zh_demo", "rm"), ("kto_en_demo", "kto")])
def test_the_demo_sets_of_llama_factory_are_read_whole(name, stage, tokenizer):
    examples, report = read_examples(load_registry(DEMO)[name], stage=stage)
    assert len(examples) == report.rows_in == 300
    groups, outcome = encode(examples[:20], tokenizer, stage=stage, cutoff_len=8192)
    assert not outcome.rejected
    assert all(len(open_group(group)[0]) == 2 for group in groups)
