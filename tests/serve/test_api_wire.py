"""The wire: what OpenAI's own client sees, and what odd bodies get. The engine says the last message back."""

from __future__ import annotations

import json
import typing

import openai
import pytest
from echo_engine import EchoEngine
from fastapi.testclient import TestClient

from llmforge.infer.protocol import Sampling
from llmforge.serve.app import create_app
from llmforge.serve.wire_chat import ChatRequest

HELLO = [{"role": "user", "content": "你好吗"}]


@pytest.fixture
def engine():
    return EchoEngine()


@pytest.fixture
def http(engine):
    defaults = Sampling(temperature=0.95, top_p=0.7, top_k=50, max_new_tokens=1024)
    with TestClient(create_app(engine, defaults=defaults), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


def ask(client, text="你好吗", **settings):
    return client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}], **settings)


def post(http, **body):
    return http.post("/v1/chat/completions", json={"model": "echo", "messages": HELLO, **body})


def test_a_plain_answer_has_everything_openai_has(client):
    answer = ask(client)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.created > 1_700_000_000
    assert answer.model == "echo"
    choice = answer.choices[0]
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "你好吗")
    assert choice.finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


def test_streamed_pieces_join_to_the_whole_reply(client):
    chunks = list(ask(client, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "你好吗"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_a_stream_ends_with_done_and_with_usage_where_asked(http):
    body = {"model": "echo", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    lines = [line for line in http.post("/v1/chat/completions", json=body).text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 6
    assert all(event["usage"] is None for event in events[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_reply_says_length(client, stream):
    answer = ask(client, max_tokens=2, stream=stream)
    reasons = [c.choices[0].finish_reason for c in answer][-1:] if stream else [answer.choices[0].finish_reason]
    assert reasons == ["length"]


@pytest.mark.parametrize("stream", [False, True])
def test_n_replies_keep_their_index(client, stream):
    if stream:
        texts = {0: "", 1: ""}
        for chunk in ask(client, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in ask(client, n=2).choices}
    assert texts == {0: "你好吗", 1: "你好吗"}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_tokens_bytes_and_alternatives(client, stream):
    answer = ask(client, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        entries = [e for c in answer if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    else:
        entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["你", "好", "吗"]
    assert bytes(entries[0].bytes).decode() == "你"
    assert entries[0].logprob == -0.5
    assert [top.token for top in entries[0].top_logprobs] == ["x", "x"]


TOOLS = [{"type": "function", "function": {"parameters": {"type": "object"}, "name": "get_weather"}}]


def test_tool_calls_come_plain(client, engine):
    choice = ask(client, "weather", tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call = choice.message.tool_calls[0]
    assert (call.type, call.function.name, call.function.arguments) == ("function", "get_weather", '{"city": "杭州"}')
    assert list(engine.asked[0].prompt.tools[0]["function"]) == ["parameters", "name"]  # the client's own order


def test_tool_calls_come_in_a_stream(client):
    chunks = list(ask(client, "weather", tools=TOOLS, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.function.name) for call in calls if call.id] == [(0, "get_weather")]
    assert "".join(call.function.arguments for call in calls) == '{"city": "杭州"}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_text_beside_tools_comes_whole_in_a_stream(client):
    assert "".join(c.choices[0].delta.content or "" for c in ask(client, tools=TOOLS, stream=True)) == "你好吗"


def test_tools_are_left_out_with_tool_choice_none(client, engine):
    ask(client, tools=TOOLS, tool_choice="none")
    assert engine.asked[0].prompt.tools == ()


def test_a_tool_round_reaches_the_engine(client, engine):
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "杭州"}'}}
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "weather"}, {"type": "text", "text": "please"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    client.chat.completions.create(model="echo", messages=messages, tools=TOOLS)
    seen = engine.asked[0].prompt.messages
    assert [m.role for m in seen] == ["system", "user", "assistant", "tool"]
    assert seen[1].content == "weather\nplease"
    assert (seen[2].tool_calls[0].name, seen[2].tool_calls[0].arguments) == ("get_weather", {"city": "杭州"})


def test_an_answer_can_be_sent_back_as_history(client, engine):
    first = ask(client, "weather", tools=TOOLS).choices[0].message
    history = [*HELLO, first.model_dump(), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}]
    client.chat.completions.create(model="echo", messages=history, tools=TOOLS)
    assert engine.asked[1].prompt.messages[1].reasoning == "because"


def test_every_setting_reaches_the_engine_and_the_rest_is_the_recipes(client, engine):
    ask(
        client,
        temperature=0,
        seed=2020,
        stop=["a", "b"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"7": -100},
        max_completion_tokens=9,
        user="me",
        extra_body={"top_k": 3, "repetition_penalty": 1.2, "ignore_eos": True, "stop_token_ids": [4]},
    )
    assert engine.asked[0].sampling == Sampling(
        max_new_tokens=9, temperature=0.0, top_p=0.7, top_k=3, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=-0.5, seed=2020, stop=("a", "b"), stop_ids=(4,), logit_bias={7: -100.0}, ignore_eos=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"max_length": 20}, {"max_length": 20, "max_new_tokens": None}),
        ({"max_length": None}, {"max_length": None, "max_new_tokens": None}),  # the rest of the context
        ({"max_length": 20, "max_tokens": 5}, {"max_length": 20, "max_new_tokens": 5}),
        ({"max_tokens": None}, {"max_new_tokens": 1024}),
        ({"decoder": "greedy"}, {"temperature": 0.0}),
        ({"decoder": "sample"}, {"temperature": 0.95}),
        ({"top_k": -1}, {"top_k": 0}),
    ],
)
def test_settings_of_other_servers_are_understood(http, engine, body, expected):
    assert post(http, **body).status_code == 200
    assert {name: getattr(engine.asked[0].sampling, name) for name in expected} == expected


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["echo", "org/tuned"]
    tuned = client.models.retrieve("org/tuned")
    assert (tuned.object, tuned.owned_by, tuned.parent) == ("model", "llmforge", "echo")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_health_and_readiness(http, engine):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").status_code == 200
    engine.ready = False
    refused = http.get("/readyz")
    assert refused.status_code == 503
    assert "Retry-After" in refused.headers


# --- refusals ---


def error_of(response):
    """The error of a response, after checking its shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return error


DEEP = '{"model": "echo", "messages": ' + "[" * 10_000 + "]" * 10_000 + "}"
USER = {"role": "user", "content": "hi"}
ODD_BODIES = {
    "content null": ({"messages": [{"role": "user", "content": None}]}, 422, "messages.0"),
    "no content": ({"messages": [{"role": "user"}]}, 422, "messages.0"),
    "max_tokens -5": ({"max_tokens": -5}, 422, "max_tokens"),
    "max_tokens 1e9": ({"max_tokens": 1e9}, 422, "max_tokens"),
    "n 0": ({"n": 0}, 422, "n"),
    "n -1": ({"n": -1}, 422, "n"),
    "n a million": ({"n": 1_000_000}, 422, "n"),
    "top_p 5": ({"top_p": 5}, 422, "top_p"),
    "temperature 1e9": ({"temperature": 1e9}, 422, "temperature"),
    "temperature text": ({"temperature": "hot"}, 422, "temperature"),
    "temperature true": ({"temperature": True}, 422, "temperature"),
    "seed huge": ({"seed": 10**30}, 422, "seed"),
    "unknown model": ({"model": "gpt-7"}, 404, "model"),
    "model number": ({"model": 3}, 422, "model"),
    "messages empty": ({"messages": []}, 422, "messages"),
    "messages text": ({"messages": "hi"}, 422, "messages"),
    "messages numbers": ({"messages": [1, 2]}, 422, "messages.0"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "hi"}]}, 422, "messages.0.role"),
    "lone surrogate": ({"messages": [{"role": "user", "content": "\ud800"}]}, 422, "body"),
    "surrogate in a tool": ({"tools": [{"type": "function", "function": {"name": "\udfff"}}]}, 422, "body"),
    "huge prompt": ({"messages": [{"role": "user", "content": "huge"}]}, 400, "messages"),
    "unknown field": ({"temprature": 0.5}, 400, "temprature"),
    "unknown field inside": ({"messages": [{**USER, "mood": "good"}]}, 400, "messages.0.mood"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
              400, "messages.0.content.0"),
    "stop number": ({"stop": 3}, 422, "stop"),
    "stop empty": ({"stop": ""}, 422, "stop.0"),
    "stop too many": ({"stop": ["x"] * 99}, 422, "stop"),
    "logit_bias word": ({"logit_bias": {"hello": 1}}, 422, "logit_bias"),
    "logit_bias large": ({"logit_bias": {"5": 1000}}, 422, "logit_bias"),
    "top_logprobs alone": ({"top_logprobs": 2}, 400, "top_logprobs"),
    "two limits": ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens"),
    "stream_options alone": ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    "json mode": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "json schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        400, "response_format",
    ),
    "json schema without one": ({"response_format": {"type": "json_schema"}}, 422, "response_format"),
    "contrastive": ({"decoder": "contrastive"}, 400, "decoder"),
    "decoder x": ({"decoder": "x"}, 422, "decoder"),
    "greedy but hot": ({"decoder": "greedy", "temperature": 1}, 400, "decoder"),
    "forced tool": ({"tools": TOOLS, "tool_choice": "required"}, 400, "tool_choice"),
    "choice without tools": ({"tool_choice": "auto"}, 400, "tool_choice"),
    "forced tool of no name": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, 400, "tool_choice",
    ),
    "the same tool twice": ({"tools": TOOLS * 2}, 400, "tools.1"),
    "strict without force": (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, 400, "tools.0.function.strict",
    ),
    "one call of no tools": ({"parallel_tool_calls": False}, 400, "parallel_tool_calls"),
    "contrastive twice": ({"decoder": "greedy", "penalty_alpha": 0.5}, 400, "decoder"),
    "too many bytes": ({"messages": [{"role": "user", "content": "x" * 401}]}, 400, "messages"),
    "too many bytes in a tool": (
        {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 401}}]}, 400, "messages",
    ),
    "too many messages": ({"messages": [USER] * 5000}, 422, "messages"),
    "infinite schema": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"maximum": float("inf")}}}]},
        422, "tools.0",
    ),
    "odd tools": ({"tools": [{"type": "function"}]}, 422, "tools.0"),
    "tools of another type": ({"tools": [{"type": "web_search"}]}, 422, "tools.0"),
    "answer without call": (
        {"messages": [USER, {"role": "tool", "tool_call_id": "c9", "content": "x"}]}, 400, "messages.1.tool_call_id",
    ),
    "arguments no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}]},
        400, "messages.0.tool_calls.0.function.arguments",
    ),
    "named user": ({"messages": [{**USER, "name": "bob"}]}, 400, "messages.0.name"),
    "beyond the engine": ({"min_p": 0.1}, 400, "min_p"),
    "audio": ({"audio": {"voice": "x"}}, 400, "audio"),
    "store": ({"store": True}, 400, "store"),
    "two problems": ({"n": 0, "foo": 1}, 422, "n"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_BODIES)
def test_an_odd_body_gets_one_clear_error(http, name):
    body, status, param = ODD_BODIES[name]
    text = json.dumps({"model": "echo", "messages": HELLO, **body})
    response = http.post("/v1/chat/completions", content=text, headers={"Content-Type": "application/json"})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param), error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 422),
        ("{", 422),
        ("[]", 422),
        ('{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}', 422),
        (b"\xff\xfe", 422),
        (b'{"model": "echo", "messages": "\xff"}', 422),
        ("null", 422),
        ('"hi"', 422),
        ('{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}', 422),
        ('{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "seed": ' + "9" * 5000 + "}", 422),
        (DEEP, 422),
        ('{"model": "echo", "messages": ' + "[" * 500 + "]" * 500 + "}", 422),
        ("{}", 422),
    ],
)
def test_a_body_that_is_no_request_gets_one_clear_error(http, text, status):
    response = http.post("/v1/chat/completions", content=text, headers={"Content-Type": "application/json"})
    error_of(response)
    assert response.status_code == status


def test_a_mistyped_field_gets_its_nearest_name(http):
    assert (
        error_of(post(http, temprature=1))["message"] == "unknown parameter 'temprature'. Did you mean 'temperature'?"
    )


def test_missing_fields_are_named(http):
    error = error_of(http.post("/v1/chat/completions", json={}))
    assert error["message"] == "model: is required; messages: is required"


def test_every_field_of_openais_client_is_known():
    from openai.types.chat import completion_create_params as params

    theirs = typing.get_type_hints(params.CompletionCreateParamsBase)
    assert set(theirs) | {"stream"} <= set(ChatRequest.model_fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("huge", openai.BadRequestError),
        ("busy", openai.RateLimitError),
        ("gone", openai.InternalServerError),
        ("broken", openai.InternalServerError),
    ],
)
def test_what_the_engine_refuses_has_its_status_in_streams_too(client, text, error, stream):
    with pytest.raises(error) as refused:
        list(ask(client, text, stream=stream))
    assert refused.value.status_code == {"huge": 400, "busy": 429, "gone": 503, "broken": 500}[text]
    if text == "busy":
        assert refused.value.response.headers["Retry-After"] == "3"
    if text == "huge":
        assert refused.value.code == "context_length_exceeded"
        assert "900" in refused.value.message
        assert "100" in refused.value.message


def test_an_error_of_ours_has_a_number_and_no_details(http):
    response = post(http, messages=[{"role": "user", "content": "bug"}])
    assert response.status_code == 500
    assert error_of(response)["message"].startswith("internal error ")
    assert "secret" not in response.text


def test_a_stream_that_fails_midway_says_so_and_ends(client, http):
    with pytest.raises(openai.APIError, match="the card caught fire"):
        list(ask(client, "half", stream=True))
    body = {"model": "echo", "messages": [{"role": "user", "content": "half"}], "stream": True}
    assert http.post("/v1/chat/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_unknown_addresses_and_methods_have_the_same_shape(http):
    assert http.get("/v2/nothing").status_code == 404
    assert "no such address" in error_of(http.get("/v2/nothing"))["message"]
    assert error_of(http.get("/v1/chat/completions"))["type"] == "invalid_request_error"


def test_a_key_is_asked_for_and_compared():
    with TestClient(create_app(EchoEngine(), api_key="s3cret")) as http:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "s3cret"},
        ):
            response = http.get("/v1/models", headers=header)
            assert response.status_code == 401
            assert error_of(response)["type"] == "authentication_error"
            assert "s3cret" not in response.text
        assert http.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert http.get("/healthz").status_code == 200


def test_a_body_above_the_cap_is_refused(engine):
    with TestClient(create_app(engine, max_body_bytes=1000)) as http:
        response = post(http, messages=[{"role": "user", "content": "x" * 2000}])
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"
        chunked = http.post("/v1/chat/completions", content=(b"x" * 600 for _ in range(3)))
        assert chunked.status_code == 413
        assert post(http).status_code == 200


def test_the_api_describes_itself(http):
    assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]


def test_the_servers_deadline_goes_with_every_request(engine):
    with TestClient(create_app(engine, deadline_s=2.5)) as http:
        post(http)
    assert 2.4 < engine.asked[0].deadline_s <= 2.5  # what is left after the line
