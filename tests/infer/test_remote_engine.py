"""The remote engine against a real socket: what is sent, what is refused by name, and no second try of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmforge.config.load import load_recipe
from llmforge.config.names import ENGINES
from llmforge.data.example import Message, ToolCall
from llmforge.errors import RecipeError
from llmforge.infer.protocol import (
    Conversation,
    EngineBusy,
    EngineFailure,
    EngineUnavailable,
    GenerateRequest,
    RequestError,
    Sampling,
    TokenIds,
    UnknownModel,
)
from llmforge.infer.remote import RemoteEngine

pytest.importorskip("openai")
HELLO = Conversation((Message("user", "你好"),))


class Server(ThreadingHTTPServer):
    """Answers every request with `status`, `body` and `headers`, and keeps what came."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.headers, self.seen = 200, {}, []
        choice = {"index": 0, "message": {"role": "assistant", "content": "你好！"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self.body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self.body["usage"] = usage

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((json.loads(body), dict(self.headers)))
        data = self.server.body if isinstance(self.server.body, bytes) else json.dumps(self.server.body).encode()
        self.send_response(self.server.status)
        for name, value in {"content-type": "application/json", **self.server.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, request, **options):
    async def run():
        engine = RemoteEngine(server.url, "m", **options)
        await engine.start()
        try:
            return [piece async for piece in engine.generate(request)]
        finally:
            await engine.stop()

    return asyncio.run(run())


def test_a_reply_comes_with_its_usage_and_only_given_fields_are_sent(server):
    request = GenerateRequest("m", HELLO, Sampling(max_new_tokens=7, temperature=0.5, stop=("x",)))
    (piece,) = ask(server, request, api_key="sk-1")
    assert (piece.text, piece.finish_reason, piece.usage.completion_tokens) == ("你好！", "stop", 2)
    body, headers = server.seen[0]
    messages = [{"role": "user", "content": "你好"}]
    assert body == {"model": "m", "messages": messages, "max_tokens": 7, "temperature": 0.5, "stop": ["x"]}
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer sk-1"


def test_schema_and_tools_go_out_and_calls_come_back(server):
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    server.body["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    server.body["choices"][0]["finish_reason"] = "tool_calls"
    tool = {"type": "function", "function": {"name": "find", "parameters": {}}}
    earlier = Message("assistant", "", (ToolCall("find", {"a": 0}),))
    prompt = Conversation((*HELLO.messages, earlier, Message("tool", "none")), (tool,))
    constraint = {"type": "json_schema", "schema": {"type": "object"}}
    (piece,) = ask(server, GenerateRequest("m", prompt, constraint=constraint))
    assert piece.message == Message("assistant", "", (ToolCall("find", {"a": 1}, "c1"),))
    body = server.seen[0][0]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["tools"] == [tool]
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": 0}'


@pytest.mark.parametrize(
    ("status", "body", "headers", "error", "says"),
    [
        (429, {"error": {"message": "slow"}}, {"retry-after": "2.5"}, EngineBusy, "slow"),
        (429, {"error": {"message": "no money", "code": "insufficient_quota"}}, {}, RequestError, "no money"),
        (500, {"error": {"message": "oops"}}, {}, EngineUnavailable, "500"),
        (401, {"error": {"message": "bad key"}}, {}, RequestError, "refuses the key"),
        (404, {"error": {"message": "no such model"}}, {}, UnknownModel, "'m' is not served"),
        (400, {"error": {"message": "too hot", "param": "temperature"}}, {}, RequestError, "too hot"),
        (200, b'{"choices": [', {}, EngineFailure, "cannot be read"),
        (200, {"id": "x", "choices": []}, {}, EngineFailure, "no choices"),
        (307, b"", {"location": "http://127.0.0.1:1/"}, Exception, ""),
    ],
)
def test_each_failure_is_told_once_in_the_words_of_the_protocol(server, status, body, headers, error, says):
    server.status, server.body, server.headers = status, body, headers
    with pytest.raises(error, match=says) as told:
        ask(server, GenerateRequest("m", HELLO), api_key="sk-secret")
    assert len(server.seen) == 1
    assert "sk-secret" not in str(told.value)
    if "retry-after" in headers:
        assert told.value.retry_after_s == 2.5


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest("m", TokenIds((1, 2))), "prompt"),
        (GenerateRequest("m", HELLO, Sampling(top_k=5)), "top_k"),
        (GenerateRequest("m", HELLO, Sampling(repetition_penalty=1.1)), "repetition_penalty"),
        (GenerateRequest("m", HELLO, Sampling(ignore_eos=True)), "ignore_eos"),
        (GenerateRequest("m", HELLO, constraint={"type": "regex"}), "response_format"),
    ],
)
def test_what_the_wire_format_cannot_say_is_refused_by_name(server, request_, param):
    with pytest.raises(RequestError, match=param):
        ask(server, request_)
    assert server.seen == []


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "file:///etc/passwd", "http://u:p@h/v1", "http://169.254.169.254/v1", "x"]
)
def test_urls_that_are_none_are_refused(url):
    with pytest.raises(RecipeError, match="base_url"):
        RemoteEngine(url, "m")


def test_a_recipe_names_the_server(server, monkeypatch):
    words = ["model_name_or_path=m", "infer_backend=remote", f"base_url={server.url}", "key_env=SOME_KEY"]
    engine_of = ENGINES.get("remote").from_recipe
    with pytest.raises(RecipeError, match="SOME_KEY is not set"):
        engine_of(load_recipe(words, "chat"))
    monkeypatch.setenv("SOME_KEY", "sk-2")
    assert engine_of(load_recipe(words, "chat")).models()[0].id == "m"
    with pytest.raises(RecipeError, match="needs base_url"):
        engine_of(load_recipe([*words[:2]], "chat"))
