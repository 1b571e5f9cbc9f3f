"""A whole block encoded in one call gives exactly what Template.encode gives row by row: every template."""

import random

import pytest
from chat_tokenizer import MORE, SHARED, control_tokens, write_tokenizer

from llmforge.data.encode import encode_examples
from llmforge.data.encode_block import Block, Cutter
from llmforge.data.example import IGNORE, Example, Message, RowRef, ToolCall
from llmforge.data.templates.find import TEMPLATES, get_template
from llmforge.data.templates.template import LabelPolicy
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},)
TEXTS = ("hello", " two  words ", "你好，今天天气怎么样？", "\n", "a\nb", "\0000\0", "{content}", "", "🙂", "x" * 50)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folders = [write_tokenizer(tmp_path_factory.mktemp("chat"))]
    if SHARED.exists():
        folders += [SHARED / "baichuan2", SHARED / "qwen2_5"]
    return [load_tokenizer(folder) for folder in folders]


def conversation(draw):
    """Roles in any order a template may meet, texts with marks, think blocks, calls and flags among them."""
    special = [*MORE, *draw.sample(control_tokens(), 4), "<|im_end|>", "<think>why</think>ok", "</think>"]

    def text():
        return "".join(draw.choices([*TEXTS, *special], k=draw.choice([1, 1, 2, 3])))

    messages = [Message("system", text())] if draw.random() < 0.4 else []
    for _ in range(draw.randint(1, 3)):
        messages.append(Message("user", text(), train=draw.choice([None, None, None, False, True])))
        if draw.random() < 0.15:
            call = ToolCall("weather", {"city": text()}, "abcdefghi")
            messages += [Message("assistant", "", (call,)), Message("tool", text())]
        reasoning = text() if draw.random() < 0.15 else None
        messages.append(Message("assistant", text(), (), reasoning, draw.choice([None, None, None, False])))
    return tuple(messages), TOOLS if draw.random() < 0.1 else ()


def one_by_one(rows, template, tokenizer, policy):
    encoded = []
    for messages, tools in rows:
        try:
            encoded.append(template.encode(tokenizer, messages, tools, policy=policy))
        except RecipeError as error:
            encoded.append(str(error))
    return encoded


def together(rows, template, tokenizer, policy):
    cutter, block, encoded = Cutter(template, tokenizer, policy), Block(), []
    for messages, tools in rows:
        try:
            block.add(*cutter.cut(messages, tools))
            encoded.append(None)
        except RecipeError as error:
            encoded.append(str(error))
    flat = block.encode(tokenizer)
    starts = flat.lengths.cumsum() - flat.lengths
    found = iter(zip(starts.tolist(), flat.lengths.tolist(), strict=True))
    for i, row in enumerate(encoded):
        if row is None:
            start, length = next(found)
            encoded[i] = tuple(a[start : start + length].tolist() for a in (flat.input_ids, flat.labels))
    return encoded


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_block_equals_its_rows_encoded_one_by_one(name, tokenizers):
    draw = random.Random(name)
    compared = 0
    for tokenizer in tokenizers:
        for system, policy in [
            (None, LabelPolicy()),
            ("Be\nbrief. ", LabelPolicy(mask_history=True)),
            ("", LabelPolicy(train_on_prompt=True)),
        ]:
            try:
                template = get_template(name, tokenizer, default_system=system)
            except RecipeError:  # the tokenizer lacks the template's control tokens
                continue
            rows = [conversation(draw) for _ in range(25)]
            alone = one_by_one(rows, template, tokenizer, policy)
            assert together(rows, template, tokenizer, policy) == alone
            compared += sum(not isinstance(row, str) for row in alone)
    assert compared > 20


def test_the_tokenizers_own_template_too(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    template = get_template("auto", tokenizer)
    draw = random.Random(0)
    rows = [conversation(draw) for _ in range(30)]
    assert together(rows, template, tokenizer, LabelPolicy()) == one_by_one(rows, template, tokenizer, LabelPolicy())


def test_rows_of_one_shape_are_cut_along_one_outline(tokenizers):
    template = get_template("qwen", tokenizers[0])
    cutter = Cutter(template, tokenizers[0], LabelPolicy())
    outlines = {id(cutter.cut([Message("user", f"q{i}"), Message("assistant", f"a{i}")], ())[0]) for i in range(9)}
    assert len(outlines) == 1


def test_blocks_follow_one_another_without_a_seam(tokenizers, monkeypatch):
    tokenizer = tokenizers[0]
    template = get_template("chatml", tokenizer)
    texts = ["a " * draw for draw in (1, 3, 40, 2, 60, 1, 1)]
    examples = [
        Example((Message("user", "q"), Message("assistant", text)), RowRef("f", i)) for i, text in enumerate(texts, 1)
    ]
    for truncation in ("right", "left", "split", "drop"):
        options = {"stage": "sft", "cutoff_len": 24, "truncation": truncation}
        whole, report = encode_examples(examples, template, tokenizer, **options)
        with monkeypatch.context() as patch:
            patch.setattr("llmforge.data.encode.BLOCK", 2)
            parts, again = encode_examples(examples, template, tokenizer, **options)
        assert list(parts) == list(whole)
        assert parts.examples.tolist() == whole.examples.tolist()
        assert (again.rejected, again.fixed) == (report.rejected, report.fixed)
        assert all(row.labels[0] == IGNORE for row in whole)
