"""Replies bound to JSON: every one parses and fits, whatever the weights; what cannot be bound is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from llmforge.data.example import Message, ToolCall
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.grammar import Grammars, masks_of
from llmforge.infer.protocol import Conversation, GenerateRequest, RequestError, Sampling

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["hardware", "network"]},
        "place": {"const": {"名称": "北港", "lon": 116.305}},
        "people": {"type": "integer", "minimum": 0, "maximum": 9},
        "urgent": {"type": "boolean"},
    },
    "required": ["label", "place", "people", "urgent"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def core(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(tiny_model_dir)
    return LocalCore(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tokenizer, get_template("auto", tokenizer))


def ask(constraint, seed=0, **sampling):
    prompt = Conversation((Message("user", "Please reset my password."),))
    return GenerateRequest("m", prompt, Sampling(seed=seed, max_new_tokens=400, **sampling), constraint)


def test_random_weights_write_what_the_schema_says(core):
    constraint = {"type": "json_schema", "schema": SCHEMA}
    requests = [ask(constraint, seed=seed, temperature=1.5) for seed in range(6)]
    replies = [reply for group in core.generate_all(requests) for reply in group]
    values = [json.loads(reply.text) for reply in replies]
    for value in values:
        jsonschema.validate(value, SCHEMA)
    assert {reply.finish_reason for reply in replies} == {"stop"}
    assert len({json.dumps(value) for value in values}) > 1  # bound, and still sampled


def test_a_free_row_beside_a_bound_one_stays_as_it_is_alone(core):
    free = ask(None, seed=3)
    alone = core.generate_all([free])[0][0]
    together = core.generate_all([ask({"type": "json_schema", "schema": SCHEMA}), free])
    assert together[1][0].token_ids[:20] == alone.token_ids[:20]
    assert json.loads(together[0][0].text)["place"] == SCHEMA["properties"]["place"]["const"]


def test_several_replies_to_one_request_each_follow_the_grammar(core):
    replies = core.generate_all([ask({"type": "json_schema", "schema": SCHEMA}, n=3, temperature=1.5)])[0]
    assert [set(json.loads(reply.text)) for reply in replies] == [set(SCHEMA["properties"])] * 3


def test_json_object_opens_with_a_brace_and_never_holds_a_control_token(core):
    reply = core.generate_all([ask({"type": "json_object"}, temperature=2.0)])[0][0]
    assert reply.text.startswith("{")
    inside = reply.token_ids[:-1] if reply.finish_reason == "stop" else reply.token_ids
    assert not set(inside) & core.tokenizer.control_ids


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"type": "yaml"}, "response format 'yaml' is not known"),
        ({"type": "json_schema", "schema": {"type": "array", "uniqueItems": True}}, "cannot bind a reply"),
        ({"type": "json_schema", "schema": {"type": "nonsense"}}, "cannot bind a reply"),
    ],
)
def test_what_cannot_be_bound_is_refused_by_name(core, constraint, message):
    with pytest.raises(RequestError, match=message):
        core.prepare(ask(constraint))


def test_the_capability_is_listed(core):
    assert core.capabilities().constraints == {"json_object", "json_schema", "tool_calls"}


# Forced tokens, and masks beside the forward pass


def bound(core, constraint, tools=()):
    return Grammars(core.tokenizer, core.vocab_size, sorted(core.stop_ids), core.template).begin(constraint, tools)


def allowed(matcher):
    """Ids that the mask leaves in."""
    logits = masks_of([matcher]).apply(torch.zeros(1, matcher.grammars.vocab_size))
    return logits[0].isfinite().nonzero().flatten().tolist()


def test_a_forced_token_is_the_only_one_its_mask_holds(core):
    matcher = bound(core, {"type": "json_schema", "schema": SCHEMA})
    text, num_forced = "", 0
    while not text.endswith("}}"):  # const place, then people is free
        forced = matcher.forced()
        if not forced:
            choices = allowed(matcher)
            assert len(choices) > 1
            matcher.take(choices[0])
            text += core.tokenizer.decode(choices[:1])
        for id in forced:
            assert allowed(matcher) == [id]
            matcher.take(id)
            text += core.tokenizer.decode([id])
            num_forced += 1
        if num_forced > 60:
            break
    assert num_forced > 10


def test_behind_a_whole_text_the_end_is_forced(core):
    matcher = bound(core, {"type": "json_schema", "schema": {"const": {"a": 1}}})
    ids = []
    while not core.stop_ids & set(ids):
        ids += (forced := matcher.forced())
        for id in forced:
            matcher.take(id)
    assert core.tokenizer.decode(ids[:-1]) == '{"a": 1}'
    assert ids[-1] == core.tokenizer.eos_id


def test_rows_without_a_grammar_keep_their_logits(core):
    matcher = bound(core, {"type": "json_object"})
    logits = torch.randn(3, core.vocab_size)
    masked = masks_of([None, matcher, None]).apply(logits)
    assert torch.equal(masked[[0, 2]], logits[[0, 2]])
    kept = masked[1].isfinite()
    assert torch.equal(masked[1][kept], logits[1][kept])
    assert 0 < kept.sum() < 20
    assert masks_of([None, None]) is None


def test_a_grammar_that_fails_says_why_and_allows_nothing(core):
    matcher = bound(core, {"type": "json_object"})
    matcher.take(core.tokenizer.ids("x")[0])
    assert "satisfy the grammar" in matcher.error
    assert allowed(matcher) == matcher.forced() == []


# Forced tool calls

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["hall", "yard"]}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "count",
            "parameters": {
                "type": "object",
                "properties": {"limit": {"type": "integer", "minimum": 1, "maximum": 3}},
                "required": ["limit"],
                "additionalProperties": False,
            },
        },
    },
)
FIND, COUNT = ToolCall("find", {"place": "yard"}), ToolCall("count", {"limit": 2})


def reads(core, template, text_parts, constraint):
    """Whether the grammar takes the ids of these parts to their end."""
    matcher = Grammars(core.tokenizer, core.vocab_size, sorted(core.stop_ids), template).begin(constraint, TOOLS)
    for part in text_parts:
        pieces = core.tokenizer.split_marks(part.text) if part.mark else (part.text,)
        for piece in pieces:
            for id in [piece] if isinstance(piece, int) else core.tokenizer.ids(piece):
                matcher.take(id)
                if matcher.error:
                    return False
    return matcher.forced() == [core.tokenizer.eos_id] or core.tokenizer.eos_id in allowed(matcher)


@pytest.mark.parametrize("syntax", ["qwen", "default", "llama3", "mistral"])
def test_a_forced_call_is_what_the_template_writes_and_reads(core, syntax):
    template = dataclasses.replace(core.template, tool_syntax=syntax)
    one, two = (template.syntax.calls(calls, "", "") for calls in ([FIND], [COUNT, FIND]))
    free = {"type": "tool_calls", "name": None, "parallel": True}
    assert reads(core, template, one, free)
    assert reads(core, template, two, free)
    assert reads(core, template, one, {**free, "name": "find", "parallel": False})
    assert not reads(core, template, one, {**free, "name": "count"})
    assert not reads(core, template, two, {**free, "parallel": False})
    assert not reads(core, template, template.syntax.calls([ToolCall("find", {"place": "moon"})], "", ""), free)


def test_a_tool_that_is_not_there_cannot_be_forced(core):
    template = dataclasses.replace(core.template, tool_syntax="qwen")
    grammars = Grammars(core.tokenizer, core.vocab_size, sorted(core.stop_ids), template)
    with pytest.raises(RequestError, match="no tool 'fly'; known: find, count"):
        grammars.begin({"type": "tool_calls", "name": "fly"}, TOOLS)
    with pytest.raises(RequestError, match="no tool None; known: none"):
        grammars.begin({"type": "tool_calls"}, ())
