"""The thinking policy: true asks for reasoning, false forces an empty block, null leaves rows as they are."""

from __future__ import annotations

import pytest
from chat_tokenizer import write_tokenizer

from llmforge.data.example import IGNORE, Message
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer

ASKED = [Message("user", "U")]
THOUGHT = Message("assistant", "B", reasoning="hm")
PLAIN = Message("assistant", "B")
OPENS = {"qwen3": "<|im_start|>assistant\n", "deepseekr1": "<｜Assistant｜>"}
END = {"qwen3": "<|im_end|>", "deepseekr1": "<eos>"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat")))


def prompt_and_learned(tokenizer, name, thinking, messages):
    template = get_template(name, tokenizer, enable_thinking=thinking)
    row = template.encode(tokenizer, messages)
    prompt = tokenizer.decode([i for i, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE])
    return prompt.rpartition(OPENS[name])[2], tokenizer.decode([label for label in row.labels if label != IGNORE])


@pytest.mark.parametrize(
    ("name", "thinking", "reply", "prompt", "learned"),
    [
        ("qwen3", True, THOUGHT, "", "<think>\nhm\n</think>\n\nB"),
        ("qwen3", True, PLAIN, "", "<think>\n\n</think>\n\nB"),
        ("qwen3", False, THOUGHT, "<think>\n\n</think>\n\n", "B"),
        ("qwen3", False, PLAIN, "<think>\n\n</think>\n\n", "B"),
        ("qwen3", None, THOUGHT, "", "<think>\nhm\n</think>\n\nB"),
        ("qwen3", None, PLAIN, "", "B"),
        ("deepseekr1", True, THOUGHT, "<think>\n", "hm\n</think>\n\nB"),
        ("deepseekr1", True, PLAIN, "<think>\n", "\n</think>\n\nB"),
        ("deepseekr1", False, THOUGHT, "<think>\n\n</think>\n\n", "B"),
        ("deepseekr1", None, THOUGHT, "", "<think>\nhm\n</think>\n\nB"),
        ("deepseekr1", None, PLAIN, "", "B"),
    ],
)
def test_each_policy(name, thinking, reply, prompt, learned, tokenizer):
    assert prompt_and_learned(tokenizer, name, thinking, [*ASKED, reply]) == (prompt, learned + END[name])


@pytest.mark.parametrize("name", OPENS)
@pytest.mark.parametrize("thinking", [True, False])
def test_a_row_begins_with_the_prompt_that_asks_for_it(name, thinking, tokenizer):
    template = get_template(name, tokenizer, enable_thinking=thinking)
    prompt = template.encode(tokenizer, ASKED, add_generation_prompt=True).input_ids
    row = template.encode(tokenizer, [*ASKED, THOUGHT])
    assert row.input_ids[: len(prompt)] == prompt
    assert set(row.labels[: len(prompt)]) == {IGNORE}
    assert IGNORE not in row.labels[len(prompt) :]


def test_a_think_block_inside_the_content_is_the_same_as_reasoning(tokenizer):
    template = get_template("qwen3", tokenizer)
    inside = Message("assistant", "<think>\nhm\n</think>\n\nB")
    assert template.encode(tokenizer, [*ASKED, inside]) == template.encode(tokenizer, [*ASKED, THOUGHT])
    empty = Message("assistant", "<think>\n\n</think>\n\nB")
    assert template.encode(tokenizer, [*ASKED, empty]) == template.encode(tokenizer, [*ASKED, PLAIN])


def test_the_history_holds_answers_only_and_an_answer_without_its_reasoning_is_not_learned(tokenizer):
    messages = [*ASKED, THOUGHT, *ASKED, THOUGHT]
    text = get_template("qwen3", tokenizer).text(tokenizer, messages)
    assert text.count("hm") == 1
    assert prompt_and_learned(tokenizer, "qwen3", True, messages)[1] == "<think>\nhm\n</think>\n\nB<|im_end|>"
    wanted = [*ASKED, Message("assistant", "A", reasoning="hm", train=True), *ASKED, THOUGHT]
    assert prompt_and_learned(tokenizer, "qwen3", True, wanted)[1].startswith("A<|im_end|>")
    plain = [*ASKED, Message("assistant", "A"), *ASKED, PLAIN]
    assert prompt_and_learned(tokenizer, "qwen3", False, plain)[1] == "A<|im_end|>B<|im_end|>"


def test_reasoning_between_tool_calls_of_the_same_question_is_kept(tokenizer):
    from llmforge.data.example import ToolCall

    calling = Message("assistant", "", (ToolCall("f", {}),), reasoning="look")
    text = get_template("qwen3", tokenizer).text(tokenizer, [*ASKED, calling, Message("tool", "x"), THOUGHT])
    assert "<think>\nlook\n</think>\n\n<tool_call>" in text
    assert "<think>\nhm\n</think>\n\nB" in text


def test_a_template_without_thinking_writes_reasoning_as_it_stands(tokenizer):
    text = get_template("chatml", tokenizer).text(tokenizer, [*ASKED, THOUGHT, *ASKED, THOUGHT])
    assert text.count("<|im_start|>assistant\n<think>\nhm\n</think>\n\nB<|im_end|>") == 2


def test_replies_are_split_into_reasoning_and_content(tokenizer):
    assert get_template("qwen3", tokenizer).parse_reply("<think>\nhm\n</think>\n\nB") == THOUGHT
    assert get_template("qwen3", tokenizer).parse_reply("<think>\n\n</think>\n\nB") == PLAIN
    assert get_template("qwen3", tokenizer).parse_reply("B") == PLAIN
    # R1's prompt has opened the block already
    assert get_template("deepseekr1", tokenizer).parse_reply("hm\n</think>\n\nB") == THOUGHT
    cut_off = get_template("deepseekr1", tokenizer).parse_reply("hm, let me")
    assert cut_off == Message("assistant", "", reasoning="hm, let me")
    assert get_template("qwen3", tokenizer).parse_reply("<think>\nhm, let") == Message(
        "assistant", "", reasoning="hm, let"
    )
