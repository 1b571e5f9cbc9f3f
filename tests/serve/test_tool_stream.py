"""Calls out of a growing reply: whatever pieces it comes in, the stream says what the whole reply says."""

from __future__ import annotations

import json

import pytest

from llmforge.data.example import Message, ToolCall
from llmforge.data.templates.tools import get_syntax
from llmforge.serve.tool_stream import CallStream

ONE = (ToolCall("get_weather", {"city": "杭州", "note": 'a "quoted" } brace'}),)
TWO = (*ONE, ToolCall("get_time", {"zone": {"name": "CST"}}))
REPLIES = [
    ("qwen", "", ONE), ("qwen", "", TWO), ("qwen", "Let me look.", TWO), ("qwen", "No call: a < b.", ()),
    ("mistral", "", ONE), ("mistral", "", TWO), ("mistral", "Just text.", ()),
    ("llama3", "", ONE), ("llama3", "", TWO), ("llama3", "Just text.", ()), ("llama3", '{"plain": "json"}', ()),
    ("default", "", ONE), ("default", "", TWO), ("default", "Thought first.", TWO), ("glm4", "", ONE),
]  # fmt: skip


def written(tool_format, content, calls):
    """A reply as the model writes it."""
    if not calls:
        return content
    return "".join(part.text for part in get_syntax(tool_format).calls(calls, content, ""))


def streamed(tool_format, text, size, message, **settings):
    """(content, reasoning, calls) of a stream in pieces of `size` characters, and how many parts came early."""
    stream = CallStream(tool_format, **settings)
    parts = [part for i in range(0, len(text), size) for part in stream.push(text[i : i + size])]
    early = len(parts)
    parts += stream.finish(message)
    said = {kind: "".join(part.text for part in parts if part.kind == kind) for kind in ("content", "reasoning")}
    names = {part.index: part.text for part in parts if part.kind == "name"}
    arguments = {
        index: json.loads("".join(part.text for part in parts if part.kind == "arguments" and part.index == index))
        for index in names
    }
    return said["content"], said["reasoning"], [(names[i], arguments[i]) for i in sorted(names)], early


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("tool_format", "content", "calls"), REPLIES)
def test_a_stream_says_what_the_whole_reply_says(tool_format, content, calls, size):
    text = written(tool_format, content, calls)
    left, found = get_syntax(tool_format).parse(text)
    assert len(found) == len(calls)
    expected = [(call.name, call.arguments) for call in calls]
    assert streamed(tool_format, text, size, Message("assistant", left, found))[:3] == (left, "", expected)


def test_arguments_come_while_they_are_written():
    text = '<tool_call>\n{"name": "f", "arguments": {"a": 1'
    stream = CallStream("qwen")
    parts = stream.push(text)
    assert [(part.kind, part.text) for part in parts] == [("name", "f"), ("arguments", '{"a": 1')]


def test_text_waits_only_while_a_call_may_begin():
    stream = CallStream("qwen")
    assert [part.text for part in stream.push("Hello\n<tool")] == ["Hello"]
    assert [part.text for part in stream.push(" shed>")] == ["\n<tool shed>"]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_reasoning_comes_before_text_and_calls(size):
    text = "<think>\nhm\n</think>\n\n" + written("qwen", "", ONE)
    message = Message("assistant", "", ONE, "hm")
    assert streamed("qwen", text, size, message)[1:3] == ("hm", [("get_weather", ONE[0].arguments)])


@pytest.mark.parametrize("tool_format", ["qwen", "mistral", "llama3", "glm4"])
def test_one_call_may_be_asked_for(tool_format):
    text = written(tool_format, "", TWO)
    message = Message("assistant", "", TWO)
    assert [name for name, _ in streamed(tool_format, text, 3, message, only_first=True)[2]] == ["get_weather"]


def test_a_call_that_is_cut_is_no_text():
    text = written("qwen", "", ONE)[:-30]
    stream = CallStream("qwen")
    parts = stream.push(text) + stream.finish(Message("assistant", text))
    assert {part.kind for part in parts} == {"name", "arguments"}
