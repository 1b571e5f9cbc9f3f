"""Tool syntaxes: what a model is told, what it writes, and that what it writes is read back."""

from __future__ import annotations

import pytest
from chat_tokenizer import write_tokenizer

from llmforge.data.example import IGNORE, Message, ToolCall
from llmforge.data.templates.find import get_template
from llmforge.data.templates.tools import SYNTAXES, get_syntax
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

TOOL = {
    "name": "weather",
    "description": "天气",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "name", "enum": ["a", "b"]}},
        "required": ["city"],
    },
}
CALLS = (ToolCall("weather", {"city": '北"京', "days": [1, {"a": None}]}), ToolCall("now", {}))
BARE = '{"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "name", "enum": ["a", "b"]}}, "required": ["city"]}}'  # fmt: skip  # noqa: E501
WRAPPED = f'{{"type": "function", "function": {BARE}}}'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat")))


def reply(tokenizer, template, message):
    """The learned text of one reply, without its end token."""
    row = template.encode(tokenizer, [Message("user", "q"), message])
    ids = [label for label in row.labels if label != IGNORE]
    stops = template.stop_ids(tokenizer)
    return tokenizer.decode(ids[:-1] if ids[-1] in stops else ids)


def test_qwen_lists_tools_and_results_as_qwen2_5_does(tokenizer):
    template = get_template("qwen", tokenizer)
    text = template.text(tokenizer, [Message("system", "S"), Message("user", "q")], [TOOL])
    assert text == (
        "<|im_start|>system\nS\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        + WRAPPED
        + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    )
    results = [Message("user", "q"), Message("assistant", "", CALLS), Message("tool", "sun"), Message("tool", "9:00")]
    assert template.text(tokenizer, results, [TOOL]).endswith(
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "北\\"京", "days": [1, {"a": null}]}}\n'
        '</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\n9:00\n</tool_response><|im_end|>\n"
    )


def test_default_is_llama_factorys(tokenizer):
    text = get_template("chatml", tokenizer).text(tokenizer, [Message("user", "q")], [TOOL])
    assert text.startswith(
        "<|im_start|>system\nYou have access to the following tools:\n"
        "> Tool Name: weather\nTool Description: 天气\nTool Args:\n"
        "  - city (string, required): name, should be one of [a, b]\n\n"
        "Use the following format if using a tool:\n```\nAction: tool name (one of [weather])\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n<|im_end|>\n'
    )


def test_mistral_puts_tools_before_the_last_question(tokenizer):
    template = get_template("mistral", tokenizer)
    turns = [Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "", CALLS[1:])]
    assert template.text(tokenizer, turns, [TOOL]) == (
        f"<bos>[INST] q[/INST] a<eos>[AVAILABLE_TOOLS] [{WRAPPED}][/AVAILABLE_TOOLS][INST] r[/INST]"
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}]<eos>'
    )


def test_glm4_writes_the_name_where_the_line_break_was(tokenizer):
    template = get_template("glm4", tokenizer)
    turns = [Message("user", "q"), Message("assistant", "", CALLS[1:]), Message("tool", "9:00")]
    text = template.text(tokenizer, turns, [TOOL])
    assert '\n\n# 可用工具\n\n## weather\n\n{\n    "name": "weather",' in text
    assert text.endswith("<|user|>\nq<|assistant|>now\n{}<|observation|>\n9:00")


def test_llama3_answers_with_bare_json(tokenizer):
    template = get_template("llama3", tokenizer)
    turns = [Message("system", "S"), Message("user", "q"), Message("assistant", "", CALLS[1:]), Message("tool", "9:00")]
    text = template.text(tokenizer, turns, [TOOL])
    assert 'Do not use variables.\n\n{\n    "type": "function",\n' in text
    assert "}\n\nS<|eot_id|>" in text  # tools stand before the system text
    assert text.endswith(
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "now", "parameters": {}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n9:00<|eot_id|>"
    )


@pytest.mark.parametrize("name", ["chatml", "qwen", "glm4", "llama3", "mistral"])
def test_what_is_written_is_read_back(name, tokenizer):
    template = get_template(name, tokenizer)
    for calls in (CALLS[:1], CALLS):
        message = Message("assistant", "", calls)
        assert template.parse_reply(reply(tokenizer, template, message)) == message
    plain = Message("assistant", 'no call, {"name": "x"}')
    assert template.parse_reply(reply(tokenizer, template, plain)) == plain


@pytest.mark.parametrize("name", ["chatml", "qwen", "glm4"])
def test_text_and_calls_are_both_read_back(name, tokenizer):
    message = Message("assistant", "Let me see.", CALLS)
    template = get_template(name, tokenizer)
    assert template.parse_reply(reply(tokenizer, template, message)) == message


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_text_beside_calls_is_refused_where_the_syntax_has_no_place_for_it(name, tokenizer):
    with pytest.raises(RecipeError, match=f"tool_format {name!r} writes a reply as text or as calls"):
        reply(tokenizer, get_template(name, tokenizer), Message("assistant", "x", CALLS))


@pytest.mark.parametrize("name", sorted(SYNTAXES))
@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1, 2]", '{"name": 1, "arguments": {}}', '<tool_call>\n{"name": "f"',
        "<tool_call>\n{broken}\n</tool_call>",
        "Action: f\nAction Input: {broken", "Action: f\nAction Input: [1]", "f\n{broken}", '[TOOL_CALLS] [{"name": 3}]',
        '[{"name": "f", "parameters": "{"}]', '{"name": "f", "arguments": [1]}',
    ],
)  # fmt: skip
def test_half_a_call_is_text(name, text):
    assert get_syntax(name).parse(text) == (text, ())


def test_calls_in_odd_but_common_spellings_are_read():
    assert get_syntax("qwen").parse('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>')[1] == (
        ToolCall("f", {"x": 1}),
    )
    assert get_syntax("llama3").parse('<|python_tag|>{"name": "f", "parameters": {}}')[1] == (ToolCall("f", {}),)
    assert get_syntax("mistral").parse('[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abc"}]')[1] == (
        ToolCall("f", {}, "abc"),
    )
    assert get_syntax("default").parse("I look.\nAction: f\nAction Input: ```{}```")[:2] == (
        "I look.",
        (ToolCall("f", {}),),
    )


def test_a_tool_format_replaces_the_templates_own(tokenizer):
    text = get_template("chatml", tokenizer, tool_format="qwen").text(tokenizer, [Message("user", "q")], [TOOL])
    assert "# Tools" in text
    with pytest.raises(RecipeError, match=r"tool_format: 'qwn' is not known. Did you mean 'qwen'"):
        get_template("chatml", tokenizer, tool_format="qwn")
