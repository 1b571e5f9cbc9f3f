"""Other people's clients, unmodified, over real connections: openai and langchain-openai against a tiny model."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from live_server import QUESTION
from pydantic import BaseModel, ConfigDict, Field

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time", "parameters": {**SCHEMA, "required": ["city"]}}},
]
LONG = {"max_tokens": 120, "temperature": 0}


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")  # so that a random model comes to an end
    city: str = Field(max_length=5)
    days: int = Field(ge=1, le=9)


def joined(chunks):
    """Text, finish reasons, usage and calls of a stream."""
    text, reasons, usage, calls = "", [], None, {}
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or ():
                call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
                call["arguments"] += part.function.arguments or ""
    return text, reasons, usage, [calls[index] for index in sorted(calls)]


SETTINGS = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.0, "top_p": 0.9, "seed": 7},
    "limits": {"max_completion_tokens": 5},
    "old limit": {"max_tokens": 5},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": -1.5, "temperature": 0},
    "bias": {"logit_bias": {"65": 100}, "max_tokens": 4},
    "stop": {"stop": ["e", "a"]},
    "logprobs": {"logprobs": True, "top_logprobs": 3, "max_tokens": 6},
    "replies": {"n": 3, "temperature": 1.0, "seed": 1},
    "json": {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}, **LONG},
    "names": {"user": "me", "safety_identifier": "x", "prompt_cache_key": "y", "store": False, "service_tier": "auto"},
    "ours": {
        "extra_body": {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.3, "max_length": 200, "decoder": "sample",
                       "ignore_eos": True, "stop_token_ids": [3]},
        "seed": 5,
    },
    "contrastive": {"extra_body": {"decoder": "contrastive"}, "max_tokens": 6},
    "half a prefix": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The"}]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stream_holds_what_the_plain_answer_holds(server, name):
    asked = {"model": "tuned", "messages": [{"role": "user", "content": QUESTION}], **SETTINGS[name]}
    plain = server.client.chat.completions.create(**asked)
    chunks = list(server.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for choice in plain.choices:
        mine = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in mine) == choice.message.content
        assert [part.finish_reason for part in mine if part.finish_reason] == [choice.finish_reason]
        if choice.logprobs:
            entries = [entry for part in mine if part.logprobs for entry in part.logprobs.content]
            assert [entry.token for entry in entries] == [entry.token for entry in choice.logprobs.content]
            assert all(len(entry.top_logprobs) == 3 for entry in entries)
    streamed, whole = chunks[-1].usage, plain.usage
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert whole.total_tokens == whole.prompt_tokens + whole.completion_tokens


def test_settings_do_what_they_say(server):
    assert server.ask(max_completion_tokens=5).usage.completion_tokens == 5
    assert server.ask(max_completion_tokens=5).choices[0].finish_reason == "length"
    a = server.ask(logit_bias={"65": 100}, max_tokens=4, logprobs=True).choices[0].logprobs.content
    assert len({entry.token for entry in a}) == 1
    first, again, other = (server.ask(temperature=1.0, top_p=1, seed=seed).choices[0].message for seed in (1, 1, 2))
    assert first.content == again.content != other.content
    weather = Weather.model_validate_json(server.ask(**SETTINGS["json"]).choices[0].message.content)
    assert 1 <= weather.days <= 9
    assert server.ask(response_format={"type": "json_object"}, **LONG).choices[0].message.content.startswith("{")


def test_usage_counts_the_models_own_tokens(server):
    import httpx

    messages = [{"role": "user", "content": QUESTION}]
    found = httpx.post(f"{server.url}/tokenize", json={"model": "tuned", "messages": messages}).json()
    answer = server.ask(max_tokens=7, extra_body={"ignore_eos": True})
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (found["count"], 7)
    text = httpx.post(f"{server.url}/detokenize", json={"model": "tuned", "tokens": found["tokens"]}).json()["prompt"]
    assert QUESTION in text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_calls_hold_to_their_schema_plain_and_streamed(server, choice):
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, **LONG}
    message = server.ask(**asked).choices[0].message
    call = message.tool_calls[0]
    assert len(message.tool_calls) == 1
    assert call.function.name in ("get_weather", "get_time")
    arguments = json.loads(call.function.arguments)
    assert len(arguments["city"]) <= 5
    _, reasons, _, calls = joined(server.ask(**asked, stream=True))
    assert reasons == ["tool_calls"]
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == [(call.function.name, arguments)]
    history = [
        {"role": "user", "content": "hi"},
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert server.client.chat.completions.create(model="tuned", messages=history, tools=TOOLS, max_tokens=3).choices


def test_the_clients_own_helpers_work(server):
    parsed = server.client.chat.completions.parse(
        model="tuned", messages=[{"role": "user", "content": "hi"}], response_format=Weather, **LONG
    )
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    with server.client.chat.completions.stream(model="tuned", messages=[{"role": "user", "content": "hi"}]) as stream:
        events = [event.type for event in stream]
    assert events[-1] == "content.done"
    raw = server.client.chat.completions.with_raw_response.create(
        model="tuned", messages=[{"role": "user", "content": "hi"}], extra_headers={"X-Request-Id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    assert raw.parse()._request_id == "mine"


def test_the_async_client_runs_many_at_once(server):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asks = [
                client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": str(n)}])
                for n in range(8)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asks)]

    assert asyncio.run(all_of_them()) == [server.ask(str(n)).choices[0].message.content for n in range(8)]


def test_completions_and_embeddings(server):
    plain = server.client.completions.create(model="tuned", prompt=["The printer", "Please"], max_tokens=5, logprobs=2)
    chunks = list(
        server.client.completions.create(model="tuned", prompt=["The printer", "Please"], max_tokens=5, stream=True)
    )
    for choice in plain.choices:
        text = "".join(part.text for chunk in chunks for part in chunk.choices if part.index == choice.index)
        assert text == choice.text
        assert len(choice.logprobs.tokens) == 5
    assert plain.usage.completion_tokens == 10
    alone = server.client.embeddings.create(model="tuned", input="The printer").data[0].embedding
    both = server.client.embeddings.create(model="tuned", input=["The printer", "A longer text about it"])
    assert both.data[0].embedding == pytest.approx(alone, abs=1e-5)
    assert sum(value * value for value in alone) == pytest.approx(1, abs=1e-5)
    assert both.usage.prompt_tokens > 0


def test_errors_are_the_clients_own(server):
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    for error, status, body in [
        (openai.NotFoundError, 404, {"model": "nobody", **asked}),
        (openai.BadRequestError, 400, {"model": "tuned", **asked, "store": True}),
        (openai.UnprocessableEntityError, 422, {"model": "tuned", **asked, "temperature": 9}),
        (openai.BadRequestError, 400, {"model": "tuned", "messages": [{"role": "user", "content": "word " * 2000}]}),
    ]:
        with pytest.raises(error) as refused:
            server.client.chat.completions.create(**body)
        assert refused.value.status_code == status
        assert refused.value.body["message"]


# --- langchain-openai ---


@pytest.fixture(scope="module")
def langchain(server):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    return chat(base_url=f"{server.url}/v1", api_key="none", model="tuned", temperature=0, max_retries=0, max_tokens=20)


def test_langchain_asks_streams_and_counts(langchain, server):
    whole = langchain.invoke("Hello")
    assert whole.content == server.ask("Hello", max_tokens=20).choices[0].message.content
    assert whole.usage_metadata["output_tokens"] == 20
    chunks = list(langchain.stream("Hello", stream_usage=True))
    assert "".join(chunk.text for chunk in chunks) == whole.content
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 20
    assert len(langchain.batch(["a", "b", "c"])) == 3
    assert langchain.bind(logprobs=True).invoke("Hello").response_metadata["logprobs"]["content"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(langchain, method):
    asked = langchain.model_copy(update={"max_tokens": 120}).with_structured_output(Weather, method=method)
    assert isinstance(asked.invoke("hi"), Weather)


def test_langchain_calls_tools(langchain):
    bound = langchain.model_copy(update={"max_tokens": 120}).bind_tools([Weather], tool_choice="any")
    message = bound.invoke("hi")
    assert message.tool_calls[0]["name"] == "Weather"
    whole = None
    for chunk in bound.stream("hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == message.tool_calls[0]["args"]


def test_langchain_embeds(server):
    embeddings = pytest.importorskip("langchain_openai").OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model="tuned", check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_documents(["a", "b"])) == 2
