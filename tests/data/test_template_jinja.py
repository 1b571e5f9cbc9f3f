"""The chat template written beside an export gives the ids that training gave: every template, through transformers."""

from __future__ import annotations

import pytest
from chat_tokenizer import SHARED, as_dict, write_tokenizer

from llmforge.data.example import Message, ToolCall
from llmforge.data.templates.find import TEMPLATES, get_template
from llmforge.data.templates.sandbox import render
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Weather of a "city"\n天气',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "it's a name", "enum": ["北京", "x"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
)
CALLS = (ToolCall("weather", {"city": '北"京'}, "abcdefghi"), ToolCall("now", {}))
CONVERSATIONS = {
    "one turn": [Message("user", "你好 'x' \\ {{ y }}"), Message("assistant", "I am fine")],
    "system": [Message("system", "Be kind."), Message("user", "hello"), Message("assistant", "好")],
    "three turns": [
        Message("user", " a "), Message("assistant", "b "), Message("user", "c"), Message("assistant", "d"),
        Message("user", "e"), Message("assistant", "f"),
    ],
    "reasoning": [
        Message("user", "a"), Message("assistant", "b", reasoning="so\nso"),
        Message("user", "c"), Message("assistant", "d", reasoning="hm"),
    ],
    "tools": [
        Message("user", "q"), Message("assistant", "", CALLS[:1]), Message("tool", "sun"), Message("assistant", "ok"),
        Message("user", "r"), Message("assistant", "", CALLS), Message("tool", "x"), Message("tool", "y"),
        Message("assistant", "fine"),
    ],
}  # fmt: skip
# These prompts end in a space, as published. A reply begins behind it; in one text the space would join the reply.
SPACE_BEFORE_REPLY = {"belle", "xverse", "ernie_nothink"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def rows(template):
    for name, messages in CONVERSATIONS.items():
        for tools in ((), TOOLS):
            for generate in (False, True):
                yield (
                    f"{name}, {len(tools)} tools, {generate}",
                    messages[:-1] if generate else messages,
                    tools,
                    generate,
                )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_jinja_renders_the_ids_of_encode(name, tokenizer, theirs):
    for thinking in (True, False, None):
        template = get_template(name, tokenizer, enable_thinking=thinking)
        chat_template = template.jinja(tokenizer)
        for what, messages, tools, generate in rows(template):
            text = theirs.apply_chat_template(
                [as_dict(m) for m in messages],
                tools=list(tools) or None,
                chat_template=chat_template,
                add_generation_prompt=generate,
                tokenize=False,
            )
            ours = template.encode(tokenizer, messages, tools, add_generation_prompt=generate).input_ids
            assert text == template.text(tokenizer, messages, tools, generate), (what, thinking)
            if name not in SPACE_BEFORE_REPLY or not any(m.role == "assistant" for m in messages):
                assert theirs(text, add_special_tokens=False).input_ids == ours, (what, thinking)
        if template.thinking is None:
            break


@pytest.mark.parametrize("name", ["llama2", "vicuna", "baichuan2", "mistral"])
def test_jinja_renders_the_same_ids_on_a_sentencepiece_tokenizer(name):
    """Baichuan2's tokenizer puts a space before each text; only templates whose marks it holds or that have none."""
    from transformers import PreTrainedTokenizerFast

    folder = SHARED / "baichuan2"
    if not folder.exists():
        pytest.skip("no real tokenizers beside the checkout")
    tokenizer = load_tokenizer(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>")
    theirs.add_tokens(["<reserved_106>", "<reserved_107>"], special_tokens=True)
    template = get_template(name, tokenizer)
    for conversation in ("one turn", "system", "three turns"):
        messages = CONVERSATIONS[conversation][:-1]
        got = theirs.apply_chat_template(
            [as_dict(m) for m in messages],
            chat_template=template.jinja(tokenizer),
            add_generation_prompt=True,
            return_dict=False,
        )
        assert got == template.encode(tokenizer, messages, add_generation_prompt=True).input_ids, conversation


def test_the_real_qwen_template_and_ours_agree_with_tools_too():
    if not (SHARED / "qwen2_5").exists():
        pytest.skip("no real tokenizers beside the checkout")
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(SHARED / "qwen2_5")
    theirs = PreTrainedTokenizerFast.from_pretrained(SHARED / "qwen2_5")
    template = get_template("qwen", tokenizer)
    for what, messages, tools, generate in rows(template):
        if what.startswith("reasoning"):
            continue  # their template drops reasoning without a word; ours writes it
        got = theirs.apply_chat_template(
            [as_dict(m) for m in messages], tools=list(tools) or None, add_generation_prompt=generate, return_dict=False
        )
        ours = template.encode(tokenizer, messages, tools, add_generation_prompt=generate).input_ids
        assert (got if generate else got[:-1]) == ours, what  # their rows end in the separator, which ends no turn


def test_a_template_without_tools_says_so(tokenizer):
    from dataclasses import replace

    template = replace(TEMPLATES.get("chatml"), tool_syntax=None)
    with pytest.raises(RecipeError, match="not taught to use tools"):
        render(template.jinja(tokenizer), messages=[{"role": "user", "content": "x"}], tools=[{}])
    with pytest.raises(RecipeError, match="has no tools; set tool_format"):
        template.encode(tokenizer, [Message("user", "x")], TOOLS)


def test_clients_may_switch_thinking_off(tokenizer):
    chat_template = get_template("qwen3", tokenizer).jinja(tokenizer)
    asked = [{"role": "user", "content": "x"}]
    text = render(chat_template, messages=asked, add_generation_prompt=True, enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_arguments_that_are_json_text_are_taken_as_they_are(tokenizer):
    call = {"type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = render(get_template("qwen", tokenizer).jinja(tokenizer), messages=messages, tools=list(TOOLS))
    assert '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
