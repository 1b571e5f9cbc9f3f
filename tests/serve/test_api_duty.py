"""The server under clients that misbehave, over real connections; the engine says the prompt back."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from live_process import HEADERS, Process
from live_server import Server
from test_api_wire import ODD_BODIES

from llmforge.serve import connections

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
JSON = {"Content-Type": "application/json"}
MIB = 1 << 20


served = partial(Server, model="org/tuned")


@pytest.fixture(scope="module")
def echo():
    with served(EchoEngine()) as server:
        yield server


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def rest_of(connection, within_s=20.0):
    """What the server says until it closes the connection."""
    connection.settimeout(within_s)
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def chat(text, **settings):
    body = json.dumps({"model": "org/tuned", "messages": [{"role": "user", "content": text}], **settings})
    return f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode()


# --- A1: odd bodies, here for the connection; test_api_wire.py looks at what they get ---


def test_odd_bodies_break_no_connection(echo):
    with httpx.Client(base_url=echo.url) as http:
        for name, (changes, status, _) in ODD_BODIES.items():
            body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], **changes}
            for stream in (False, True) if "stream_options" not in changes else (False,):
                text = json.dumps({"stream": stream, **body})
                response = http.post("/v1/chat/completions", content=text, headers=JSON)
                assert response.status_code == status, name
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}


# --- A2: large bodies ---

DEEP = b'{"model": "tuned", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MANY = b'{"model": "tuned", "messages": [' + b'{"role":"user","content":"x"},' * 120_000 + b"{}]}"
LARGE = {
    "1 MB of text": (b'{"model": "tuned", "messages": [{"role": "user", "content": "' + b"x" * 10**6 + b'"}]}', 400),
    "5 MB": (b"x" * 5 * 10**6, 413),
    "50 MB": (b"x" * 50 * 10**6, 413),
    "a depth of 100,000": (DEEP, 422),
    "120,000 messages": (MANY, 422),
    "a million messages": (MANY * 9, 413),
}


@pytest.fixture(scope="module")
def alone(run_dir, tmp_path_factory):
    """The server in a process of its own, whose memory is not the client's."""
    with Process(run_dir, tmp_path_factory.mktemp("alone")) as live:
        yield live


@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_is_refused_and_leaves_no_memory_behind(alone, name):
    body, status = LARGE[name]

    def refused():
        response = httpx.post(f"{alone.url}/v1/chat/completions", content=body, headers=HEADERS, timeout=60)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    refused()
    before = alone.rss()
    for _ in range(3):
        refused()
    assert alone.rss() - before < 64 * MIB


def test_a_body_without_an_end_is_refused_at_the_cap(echo):
    with connect(echo) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 200 * MIB:
                connection.sendall(chunk)
                sent += len(chunk)
        assert sent < 200 * MIB
    assert echo.ask("hi", model="echo").choices


def test_a_body_of_500_mb_is_refused_before_it_comes(echo):
    with connect(echo) as connection:
        connection.sendall(f"{HEAD}Content-Length: {500 * MIB}\r\n\r\n{{".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_what_is_no_http_gets_an_answer_in_the_same_shape(echo):
    for text in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"):
        with connect(echo) as connection:
            connection.sendall(text)
            answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_http"


# --- A5: clients that leave ---


def leave_at(server, point, text, **settings):
    """Send a request and close the connection after so many bytes of it, or so many seconds of its answer."""
    with connect(server) as connection:
        request = chat(text, **settings)
        connection.sendall(request[: int(point * len(request))] if point < 1 else request)
        if point >= 1:
            time.sleep((point - 1) * 0.3)


def test_clients_that_leave_at_any_point_leave_no_place_taken(echo):
    draw = random.Random(0)
    points = [(draw.uniform(0, 2), draw.random() < 0.5) for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: leave_at(echo, at[0], "drip" * 20, stream=at[1], n=2), points))
    assert echo.becomes_idle()
    assert echo.ask("hi").choices


def test_a_client_that_leaves_its_embeddings_gives_its_place_back(echo):
    body = json.dumps({"model": "echo", "input": "slow"})
    with connect(echo) as connection:
        head = HEAD.replace("chat/completions", "embeddings")
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while not echo.server.serving.line.num_running:
            time.sleep(0.01)
    assert echo.becomes_idle()


# --- A6: slow clients ---


def test_slow_heads_are_closed_and_hold_up_nobody(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 1.0)
    with served(EchoEngine(), max_connections=0) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHo")
        assert server.ask("hi").choices
        with ThreadPoolExecutor(8) as pool:
            assert not any(pool.map(rest_of, slow))


def test_a_second_head_on_the_same_connection_has_its_time_too(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.5)
    with served(EchoEngine()) as server, connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):  # the head may come alone
            answer += connection.recv(65536)
        assert b"200 OK" in answer
        connection.sendall(b"GET /hea")
        assert rest_of(connection) == b""


def test_a_reader_that_takes_nothing_is_closed_and_its_place_freed(monkeypatch):
    monkeypatch.setattr(connections, "STALL_TIMEOUT_S", 0.5)
    with served(EchoEngine()) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        with connection:
            connection.sendall(chat("x" * 20_000, stream=True, max_tokens=20_000))
            assert connection.recv(100)
            assert server.ask("hi").choices
            assert server.becomes_idle()
            assert len(rest_of(connection)) < 1_000_000  # of 4 MB


def test_an_address_has_so_many_connections():
    with served(EchoEngine(), max_connections=3) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server))
        time.sleep(0.2)
        for _ in range(5):  # one that sends at once reads the refusal too
            answer = httpx.post(f"{server.url}/v1/chat/completions", content=b"x" * 100_000)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_connections")
        stack.close()
        time.sleep(0.2)
        assert server.ask("hi").choices


# --- A7: the end ---


def test_a_stopping_server_says_so_and_lets_accepted_requests_end():
    engine = EchoEngine()
    with served(engine, drain_s=30) as server, httpx.Client(base_url=server.url) as http:
        http.get("/healthz")
        stream = iter(server.ask("drip" * 10, stream=True))
        text = next(stream).choices[0].delta.content
        server.server.should_exit = True
        while http.get("/readyz").status_code == 200:
            time.sleep(0.01)
        refused = http.post(
            "/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "a"}]}
        )
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "drip" * 10
    assert engine.closed == 0


# --- A8: the engine ---


def test_one_failing_request_hurts_no_other(echo):
    with ThreadPoolExecutor(8) as pool:
        texts = ["drip", "broken", "bug", "half"] * 4

        def outcome(text):
            try:
                return echo.ask(text).choices[0].message.content
            except openai.InternalServerError as error:
                return error.status_code

        assert list(pool.map(outcome, texts)) == ["drip", 500, 500, 500] * 4
    assert echo.becomes_idle()


def test_a_dead_engine_is_not_ready_and_ends_the_process():
    engine = EchoEngine()
    with served(engine, dead_s=1.0) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        engine.ready = False
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        server.thread.join(timeout=30)
        assert server.server.engine_is_lost


# --- A11: fairness ---


class OneAtATime(EchoEngine):
    """Decodes so many requests at once, the others wait inside; counts the most it was given."""

    def __init__(self, places):
        super().__init__()
        self.places, self.given, self.most = places, 0, 0

    def capabilities(self):
        return type(super().capabilities())(super().capabilities().sampling, max_running=self.places)

    async def generate(self, request):
        self.given += 1
        self.most = max(self.most, self.given)
        try:
            async for piece in super().generate(request):
                yield piece
        finally:
            self.given -= 1


def test_one_clients_many_requests_leave_room_for_anothers(tmp_path):
    (tmp_path / "keys.yaml").write_text("greedy: one\nsmall: two\n")
    engine = OneAtATime(8)
    with served(engine, api_keys_file=tmp_path / "keys.yaml") as server:
        small = server.client.with_options(api_key="two")
        greedy = server.client.with_options(api_key="one")

        def ask(client, text):
            client.chat.completions.create(model="org/tuned", messages=[{"role": "user", "content": text}])

        ask(small, "a")
        threads = [threading.Thread(target=ask, args=(greedy, "drip" * 15)) for _ in range(40)]
        for thread in threads:
            thread.start()
        while server.server.serving.line.num_waiting < 20:
            time.sleep(0.01)
        for _ in range(5):
            ask(small, "a")
            assert server.server.serving.line.num_waiting > 0  # it came before those that waited
        for thread in threads:
            thread.join()
        assert engine.most <= 10
