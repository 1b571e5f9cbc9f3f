"""The addresses beside chat, forced calls, and the page that lists every field. The engine says the prompt back."""

from __future__ import annotations

import math
import re
from pathlib import Path

import openai
import pytest
from echo_engine import EchoEngine
from fastapi.testclient import TestClient
from test_api_wire import HELLO, TOOLS, ask, error_of, post

from llmforge.serve.app import create_app
from llmforge.serve.wire_chat import REFUSED, ChatRequest
from llmforge.serve.wire_text import REFUSED_OF_COMPLETIONS, CompletionRequest, EmbeddingRequest

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.fixture(scope="module")
def engine():
    return EchoEngine({"json_object", "json_schema", "tool_calls"}, "qwen")


@pytest.fixture(scope="module")
def http(engine):
    app = create_app(engine, model_aliases={"gpt-4o": "echo"})
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


# --- completions ---


def test_a_raw_prompt_is_continued(client, engine):
    answer = client.completions.create(model="echo", prompt="你好", temperature=0, seed=3)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "你好",
        "stop",
    )
    assert answer.usage.total_tokens == 4
    assert engine.asked[-1].prompt.ids == (ord("你"), ord("好"))
    assert engine.asked[-1].sampling.seed == 3


@pytest.mark.parametrize("prompt", [["ab", "c"], [[97, 98], [99]]])
def test_many_prompts_keep_their_places(client, prompt):
    answer = client.completions.create(model="echo", prompt=prompt, n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "ab"), (1, "ab"), (2, "c"), (3, "c")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)


def test_completions_stream_what_the_plain_answer_holds(client):
    asked = {"model": "echo", "prompt": ["abc", "de"], "echo": True}
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    whole = client.completions.create(**asked)
    assert texts == {0: "abcabc", 1: "dede"} == {choice.index: choice.text for choice in whole.choices}
    assert chunks[-1].usage == whole.usage


def test_logprobs_of_completions_are_lists(client):
    logprobs = client.completions.create(model="echo", prompt="abc", logprobs=2).choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["a", "b", "c"], [-0.5] * 3, [0, 1, 2])
    assert logprobs.top_logprobs[0] == {"x": -1.5}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": ""}, 200, None),
        ({"prompt": []}, 422, "prompt"),
        ({"prompt": [-1]}, 422, "prompt"),
        ({}, 422, "prompt"),
        ({"prompt": "x" * 401}, 400, "prompt"),
        ({"prompt": "huge"}, 400, "prompt"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
        ({"prompt": "a", "best_of": 3}, 400, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, 400, "echo"),
        ({"prompt": ["a", "huge"]}, 400, "prompt"),
        ({"prompt": "a", "messages": []}, 400, "messages"),
    ],
)
def test_odd_completions_are_refused_by_name(http, body, status, param):
    response = http.post("/v1/completions", json={"model": "echo", **body})
    assert response.status_code == status
    if status != 200:
        assert error_of(response)["param"].partition(".")[0] == param


# --- forced calls and formats ---


def test_a_forced_call_binds_the_reply(client, engine):
    ask(client, "weather", tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert engine.asked[-1].constraint == {"type": "tool_calls", "name": None, "parallel": False}
    named = {"type": "function", "function": {"name": "get_weather"}}
    choice = ask(client, "weather", tools=TOOLS, tool_choice=named).choices[0]
    assert engine.asked[-1].constraint == {"type": "tool_calls", "name": "get_weather", "parallel": True}
    assert choice.finish_reason == "tool_calls"


def test_a_forced_call_and_a_format_contradict_each_other(http):
    response = post(http, tools=TOOLS, tool_choice="required", response_format=SCHEMA)
    assert error_of(response)["param"] == "response_format"


def test_a_schema_reaches_the_engine(client, engine):
    ask(client, response_format=SCHEMA)
    assert engine.asked[-1].constraint == {"type": "json_schema", "schema": {"type": "object"}}
    ask(client, response_format={"type": "json_object"})
    assert engine.asked[-1].constraint == {"type": "json_object"}


def test_two_calls_stream_side_by_side_and_one_can_be_asked_for(client):
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
    text = call % "a" + "\n" + call % "b"
    for settings, cities in (({}, ["a", "b"]), ({"parallel_tool_calls": False}, ["a"])):
        plain = ask(client, text, tools=TOOLS, **settings).choices[0].message.tool_calls
        assert [call.function.arguments for call in plain] == [f'{{"city": "{city}"}}' for city in cities]
        found = {}
        for chunk in ask(client, text, tools=TOOLS, stream=True, **settings):
            for part in chunk.choices[0].delta.tool_calls or ():
                found[part.index] = found.get(part.index, "") + part.function.arguments
        assert [found[i] for i in sorted(found)] == [call.function.arguments for call in plain]


# --- embeddings, scores, tokens ---


def test_embeddings_come_as_numbers_and_as_base64(client, engine):
    whole = client.embeddings.create(model="echo", input=["a", "b"], encoding_format="float")
    assert [entry.embedding for entry in whole.data] == [[0.6, -0.8]] * 2
    assert whole.usage.prompt_tokens == whole.usage.total_tokens == 6
    packed = client.embeddings.create(model="echo", input="a", extra_body={"pooling": "cls", "max_length": 9})
    assert packed.data[0].embedding == pytest.approx([0.6, -0.8])  # the client asks for base64 and reads it
    assert engine.asked[-1] == (["a"], "cls", 9)


@pytest.mark.parametrize(
    ("body", "status"),
    [({"dimensions": 2}, 200), ({"dimensions": 3}, 400), ({"pooling": "max"}, 422), ({"input": []}, 422),
     ({"model": "org/tuned"}, 400), ({"model": "nobody"}, 404), ({"input": "x" * 500}, 400)],
)  # fmt: skip
def test_odd_embeddings_are_refused(http, body, status):
    response = http.post("/v1/embeddings", json={"model": "echo", "input": "a", **body})
    assert response.status_code == status


def test_scores_have_a_sigmoid_and_a_reason_where_there_is_none(http):
    conversations = [[*HELLO, {"role": "assistant", "content": text}] for text in ("ab", "huge")]
    body = http.post("/v1/score", json={"model": "echo", "conversations": conversations, "token_scores": True}).json()
    first, second = body["data"]
    assert first["score"] == 2.0
    assert first["sigmoid"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert (first["token_scores"], first["length"]) == ([0.0, 2.0], 2)
    assert (second["score"], second["sigmoid"], second["reason"]) == (None, None, "too long")
    assert "length" not in second
    assert body["usage"]["total_tokens"] == 10
    assert http.post("/v1/score", json={"model": "echo"}).status_code == 400


def test_texts_become_ids_and_texts_again(http):
    found = http.post("/tokenize", json={"model": "echo", "prompt": "ab", "return_token_strs": True}).json()
    assert found == {"count": 2, "max_model_len": 100, "tokens": [97, 98], "token_strs": ["a", "b"]}
    assert http.post("/tokenize", json={"model": "gpt-4o", "messages": HELLO}).json()["count"] == 3
    assert http.post("/detokenize", json={"model": "echo", "tokens": [97, 98]}).json() == {"prompt": "ab"}
    assert http.post("/tokenize", json={"model": "echo"}).status_code == 400


# --- the server itself ---


def test_an_alias_is_served_and_listed(client):
    assert client.chat.completions.create(model="gpt-4o", messages=HELLO).model == "gpt-4o"
    assert "gpt-4o" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-4o").parent == "echo"


def test_adapters_come_and_go(http, client):
    name = {"lora_name": "extract", "lora_path": "runs/extract"}
    assert http.post("/v1/load_lora_adapter", json=name).status_code == 200
    assert "extract" in [model.id for model in client.models.list()]
    assert error_of(http.post("/v1/load_lora_adapter", json=name))["type"] == "invalid_request_error"
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "extract"}).status_code == 200
    assert "extract" not in [model.id for model in client.models.list()]


def test_the_page_of_the_api_loads_nothing_from_elsewhere(http):
    page = http.get("/docs").text
    assert "/v1/embeddings" in page
    assert "<script" not in page
    assert "//" not in page.replace("<!doctype html>", "")
    document = http.get("/openapi.json").json()
    assert "ChatMessage" in document["components"]["schemas"]


def test_old_clients_get_400(engine):
    with TestClient(create_app(engine, strict_400=True)) as http:
        assert post(http, model="nobody").status_code == 400
        assert post(http, messages=[{"role": "assistant", "content": "a"}]).status_code == 400
        assert post(http).status_code == 200


# --- docs/api.md ---


def matrix():
    """Field -> (in chat, in completions), from the page."""
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|", PAGE, re.MULTILINE)
    return {name: (chat, completions) for name, chat, completions in rows}


@pytest.mark.parametrize(
    ("column", "kind", "refused"), [(0, ChatRequest, REFUSED), (1, CompletionRequest, REFUSED_OF_COMPLETIONS)]
)
def test_the_page_lists_every_field_and_what_becomes_of_it(column, kind, refused):
    told = {name: columns[column] for name, columns in matrix().items() if columns[column] != "-"}
    assert set(told) == set(kind.model_fields)
    assert {name for name, what in told.items() if what == "no"} == set(refused)
    assert set(told.values()) <= {"yes", "engine", "taken", "no"}
    assert all(f"`{name}`" in PAGE for name in EmbeddingRequest.model_fields)


VALUES = {
    "max_tokens": 5, "max_completion_tokens": 5, "max_length": 50, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
    "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.5, "logit_bias": {"7": 1},
    "seed": 1, "n": 2, "stop": "x", "stop_token_ids": [4], "ignore_eos": True, "decoder": "contrastive",
    "penalty_alpha": 0.5, "logprobs": True, "top_logprobs": 2, "response_format": SCHEMA, "tool_choice": "required",
}  # fmt: skip


def test_what_depends_on_the_engine_is_refused_by_name_where_it_cannot(monkeypatch):
    engine = EchoEngine()
    poor = type(engine.capabilities())(frozenset())
    monkeypatch.setattr(engine, "capabilities", lambda: poor)
    together = {"top_logprobs": {"logprobs": True}, "tool_choice": {"tools": TOOLS}}
    also_named = {"max_completion_tokens": "max_tokens", "penalty_alpha": "decoder", "top_logprobs": "logprobs"}
    depends = [name for name, (chat, _) in matrix().items() if chat == "engine"]
    assert sorted(depends) == sorted(VALUES)
    with TestClient(create_app(engine)) as http:
        for name in depends:
            response = post(http, **{name: VALUES[name]}, **together.get(name, {}))
            assert response.status_code == 400, name
            assert error_of(response)["param"] in (name, also_named.get(name)), name
