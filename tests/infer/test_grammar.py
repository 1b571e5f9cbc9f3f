"""Replies bound to JSON: every one parses and fits, whatever the weights; what cannot be bound is refused by name."""

from __future__ import annotations

import json

import pytest

from llmforge.data.example import Message
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
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
    assert core.capabilities().constraints == {"json_object", "json_schema"}
