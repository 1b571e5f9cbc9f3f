"""What a reply makes of tokens that are given to it by hand."""

from __future__ import annotations

import pytest
import transformers

from llmforge.data.example import Message
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.reply import GrowingReply, Reply
from llmforge.infer.local.sampler import Choice
from llmforge.infer.protocol import Conversation, GenerateRequest, Sampling

TOOLS = ({"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}},)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)


def replied(model, tokenizer, ids, template="qwen", tools=(), prefix=None, **sampling):
    """The reply that these ids make, through the core's own preparation."""
    core = LocalCore(model, tokenizer, get_template(template, tokenizer))
    messages = (Message("user", "hi"), *([Message("assistant", prefix)] if prefix else []))
    request = GenerateRequest("", Conversation(messages, tools), Sampling(max_new_tokens=len(ids), **sampling))
    job = core.prepare(request)
    reply = GrowingReply(0, job, 0, core._text(job), tokenizer, core.template)
    pieces = []
    for id in ids:
        if (piece := reply.take(Choice(id))) is not None:
            pieces.append(piece)
        if reply.ended:
            break
    return Reply.of(pieces), pieces[-1]


def called(tokenizer, *texts):
    ids = []
    for text in texts:
        call = f"\n{text}\n"
        ids += [tokenizer.control("<tool_call>"), *tokenizer.ids(call), tokenizer.control("</tool_call>")]
    return [*ids, tokenizer.eos_id]


def test_calls_are_read_where_tools_were_given(model, tokenizer):
    ids = called(tokenizer, '{"name": "get_weather", "arguments": {"city": "杭州"}}', '{"name": "b", "arguments": {}}')
    reply, last = replied(model, tokenizer, ids, tools=TOOLS)
    assert last.finish_reason == "tool_calls"
    assert [(call.name, call.arguments) for call in last.message.tool_calls] == [
        ("get_weather", {"city": "杭州"}),
        ("b", {}),
    ]
    assert last.message.content == ""
    assert "<tool_call>" in reply.text


def test_a_call_that_is_cut_off_stays_a_cut_reply(model, tokenizer):
    ids = called(tokenizer, '{"name": "get_weather", "arguments": {}}')[:-4]
    assert replied(model, tokenizer, ids, tools=TOOLS)[1].finish_reason == "length"


def test_without_tools_nothing_is_read(model, tokenizer):
    _, last = replied(model, tokenizer, [*tokenizer.ids("hello"), tokenizer.eos_id])
    assert (last.message, last.finish_reason) == (None, "stop")


def test_the_space_that_opens_replies_is_left_out_once(model, tokenizer):
    ids = [*tokenizer.ids("  two spaces"), tokenizer.eos_id]
    assert replied(model, tokenizer, ids, template="vicuna")[0].text == " two spaces"
    assert replied(model, tokenizer, ids, template="qwen")[0].text == "  two spaces"


def test_a_continued_reply_keeps_its_space(model, tokenizer):
    ids = [*tokenizer.ids(" world"), tokenizer.eos_id]
    assert replied(model, tokenizer, ids, template="vicuna", prefix="hello")[0].text == " world"


def test_held_text_comes_with_the_end(model, tokenizer):
    ids = [*tokenizer.ids("a##"), tokenizer.eos_id]
    reply, _ = replied(model, tokenizer, ids, stop=("###",))
    assert (reply.text, reply.finish_reason) == ("a##", "stop")


def test_a_stop_string_completed_by_the_last_allowed_token_says_stop(model, tokenizer):
    reply, _ = replied(model, tokenizer, tokenizer.ids("a##b"), stop=("##",))
    assert (reply.text, reply.finish_reason) == ("a", "stop")
