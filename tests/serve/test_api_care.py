"""The server's duty of care: keys, rates, the line, the switch, the log. Times are given, nothing is waited for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging

import pytest
from echo_engine import EchoEngine
from fastapi.testclient import TestClient
from test_api_wire import error_of, post

from llmforge.config.schema import ServeConfig
from llmforge.errors import RecipeError
from llmforge.infer.protocol import EngineBusy, EngineUnavailable
from llmforge.serve import keys as keys_module
from llmforge.serve.app import create_app
from llmforge.serve.degrade import COOLDOWN_S, MIN_FAILURES, Switch
from llmforge.serve.errors import ApiError
from llmforge.serve.keys import Client, Keys
from llmforge.serve.line import ACTIVE_S, Line
from llmforge.serve.rates import Rates
from llmforge.serve.run import check_names


class Clock:
    """A time that is set."""

    now = 1000.0

    def __call__(self):
        return self.now


def said(text):
    return [{"role": "user", "content": text}]


# --- keys ---


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_several_keys_with_their_rights(tmp_path):
    path = tmp_path / "keys.yaml"
    hashed = hashlib.sha256(b"sk-3").hexdigest()
    path.write_text(f"pipeline: sk-one\nops: {{key: sk-two, admin: true}}\nbatch: {{sha256: {hashed}}}\n")
    with TestClient(create_app(EchoEngine(), api_keys_file=path)) as http:
        for key in ("sk-one", "sk-two", "sk-3"):
            assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        for header in ({}, bearer("sk-four"), bearer("sk-on"), {"Authorization": "Basic sk-one"}):
            response = http.get("/v1/models", headers=header)
            assert response.status_code == 401
            assert "sk-" not in response.text
        for address in ("/metrics", "/admin/degrade"):
            assert http.get(address).status_code == 401
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200
        turn = {"mode": "hide"}
        refused = http.post("/admin/degrade", json=turn, headers=bearer("sk-one"))
        assert refused.status_code == 403
        assert error_of(refused)["code"] == "no_permission"
        assert http.post("/admin/degrade", json=turn, headers=bearer("sk-two")).status_code == 200


def test_keys_rotate_without_a_restart_and_a_broken_file_changes_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keys_module, "LOOK_EVERY_S", 0.0)
    path = tmp_path / "keys.yaml"
    path.write_text("a: old-key\n")
    keys = Keys(path=path)
    assert keys.find(b"Bearer old-key").name == "a"
    path.write_text("a: newer-key\n")
    assert keys.find(b"Bearer old-key") is None
    assert keys.find(b"Bearer newer-key").name == "a"
    path.write_text("- broken-secret")
    assert keys.find(b"Bearer newer-key").name == "a"
    assert "stay as they were" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "cause"),
    [("[]", "must hold lines"), ("a: 3", "a key is a text"), ("a: {key: x, sha256: y}", "needs its key"),
     ("{", "cannot be read"),
     ("a: {key: x, colour: y}", "unknown colour"), ("a: s3cret\nb: s3cret", "the same key"),
     ("a: {sha256: xyz}", "64 digits"),
     ("a: {key: x, rate_limit: 0}", "rate_limit"), ("a: {key: x, admin: 'yes'}", "admin is true or false")],
)  # fmt: skip
def test_a_wrong_keys_file_is_refused_without_its_keys(tmp_path, text, cause):
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(RecipeError, match=cause) as refused:
        Keys(path=tmp_path / "keys.yaml")
    assert "s3cret" not in str(refused.value)


def test_a_server_without_a_key_answers_to_its_own_name_only():
    hosts = frozenset({"localhost", "127.0.0.1"})
    with TestClient(create_app(EchoEngine(), hosts=hosts), base_url="http://localhost:8000") as http:
        assert http.get("/v1/models").status_code == 200
        for host in ("evil.example:8000", "", "[::", "127.0.0.1.evil.example"):
            response = http.get("/v1/models", headers={"Host": host})
            assert response.status_code == 403, host
            assert error_of(response)["code"] == "wrong_host"


def test_only_what_is_called_json_is_read():
    with TestClient(create_app(EchoEngine())) as http:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            response = http.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": kind})
            assert response.status_code == 415


def test_pages_of_named_origins_may_call():
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with TestClient(create_app(EchoEngine(), api_key="k", cors_origins=("https://a.example",))) as http:
        allowed = http.options("/v1/chat/completions", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        strange = http.options("/v1/chat/completions", headers={**asks, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in strange.headers


def test_a_proxy_may_keep_or_strip_its_path():
    with TestClient(create_app(EchoEngine(), api_key="k", root_path="/forge")) as http:
        for start in ("", "/forge"):
            assert http.get(f"{start}/v1/models", headers=bearer("k")).status_code == 200
            assert http.get(f"{start}/v1/models").status_code == 401
            assert http.post(f"{start}/admin/degrade", json={"mode": "off"}, headers=bearer("k")).status_code == 200


def test_an_alias_names_a_served_model():
    with pytest.raises(RecipeError, match="Did you mean 'classify'"):
        check_names(ServeConfig(model_aliases={"gpt-4o": "clasify"}), ["classify"])
    with pytest.raises(RecipeError, match="is the name of a served model already"):
        check_names(ServeConfig(model_aliases={"classify": "classify"}), ["classify"])


# --- rates ---


def test_a_client_may_send_its_minutes_worth_and_then_waits():
    clock = Clock()
    rates, me, other = Rates(10, None, clock), Client("me"), Client("other", rate_limit=1)
    assert [rates.take(me)["x-ratelimit-remaining-requests"] for _ in range(10)] == [str(n) for n in range(9, -1, -1)]
    with pytest.raises(ApiError) as refused:
        rates.take(me)
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "6"
    rates.take(other)
    with pytest.raises(ApiError):
        rates.take(other)
    clock.now += 6
    rates.take(me)


def test_all_clients_share_the_total():
    rates = Rates(None, 3, Clock())
    for name in ("a", "b", "c"):
        rates.take(Client(name))
    with pytest.raises(ApiError, match="all clients together"):
        rates.take(Client("d"))


def test_many_clients_are_forgotten_before_they_fill_the_memory():
    rates = Rates(5, None, Clock())
    for _ in range(5):
        rates.take(Client("busy"))
    for number in range(10_000):
        rates.take(Client(str(number)))
    assert len(rates._clients) < 5000
    with pytest.raises(ApiError):
        rates.take(Client("busy"))


def test_twenty_calls_at_a_limit_of_ten_over_http():
    with TestClient(create_app(EchoEngine(), rate_limit=10)) as http:
        answers = [post(http) for _ in range(20)]
        assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 10
        assert error_of(answers[-1])["code"] == "rate_limit_exceeded"
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert http.get("/v1/models").status_code == 200


# --- the line ---


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Request:
    """One that takes a place and keeps it until told."""

    def __init__(self, line, client, rows=1, timeout_s=60):
        self.may_end, self.is_through, self.error = asyncio.Event(), False, None
        self.task = asyncio.create_task(self._go(line, client, rows, timeout_s))

    async def _go(self, line, client, rows, timeout_s):
        try:
            async with line.place(client, rows, timeout_s):
                self.is_through = True
                await self.may_end.wait()
        except Exception as error:
            self.error = error


async def end(requests):
    for request in requests:
        request.may_end.set()
        request.task.cancel()
    await asyncio.gather(*(request.task for request in requests), return_exceptions=True)


def test_a_client_alone_has_the_whole_engine_and_a_full_line_refuses():
    async def story():
        line = Line(8, 4)
        requests = [Request(line, "me") for _ in range(15)]
        await settle()
        assert line.num_running == 10  # two more than run, so that the engine never waits for the line
        assert line.num_waiting == 4
        assert isinstance(requests[-1].error, EngineBusy)
        requests[0].may_end.set()
        await settle()
        assert requests[10].is_through
        await end(requests)
        assert (line.num_running, line.num_waiting) == (0, 0)

    asyncio.run(story())


def test_a_newcomer_goes_before_the_hundred_of_another():
    async def story():
        clock = Clock()
        line = Line(8, 64, clock=clock)
        first = Request(line, "small")  # so that the greedy one has company
        await settle()
        first.may_end.set()
        await settle()
        greedy = [Request(line, "greedy") for _ in range(60)]
        await settle()
        assert line.num_running == 4  # half of them
        small = Request(line, "small")
        await settle()
        assert small.is_through
        small.may_end.set()
        clock.now += 2 * ACTIVE_S
        greedy[0].may_end.set()
        await settle()
        assert line.num_running == 10  # alone again
        await end(greedy)

    asyncio.run(story())


def test_places_are_shared_among_clients():
    async def story():
        line = Line(8, 64)
        requests = {name: [Request(line, name) for _ in range(12)] for name in ("a", "b")}
        await settle()
        for _ in range(3):  # what runs ends, what waits takes its places
            for request in [r for some in requests.values() for r in some if r.is_through and not r.may_end.is_set()]:
                request.may_end.set()
                await settle()
        assert abs(sum(r.is_through for r in requests["a"]) - sum(r.is_through for r in requests["b"])) <= 3
        await end([*requests["a"], *requests["b"]])

    asyncio.run(story())


def test_in_a_full_line_a_newcomer_takes_the_last_place_of_the_greedy():
    async def story():
        line = Line(1, 3)
        greedy = [Request(line, "greedy") for _ in range(4)]
        await settle()
        small = Request(line, "small")
        await settle()
        assert isinstance(greedy[-1].error, EngineBusy)
        greedy[0].may_end.set()
        await settle()
        assert small.is_through
        await end([*greedy, small])

    asyncio.run(story())


def test_waiting_ends_and_leaves_nothing_behind():
    async def story():
        line = Line(1, 8)
        running = Request(line, "a")
        await settle()
        late = Request(line, "a", timeout_s=0.01)
        left = Request(line, "a")
        await settle()
        left.task.cancel()
        await asyncio.wait({late.task})
        assert isinstance(late.error, EngineUnavailable)
        assert line.num_waiting == 0
        running.may_end.set()
        await settle()
        assert line.num_running == 0
        assert not line._running

    asyncio.run(story())


def test_a_request_that_leaves_as_its_turn_comes_gives_its_place_back():
    async def story():
        line = Line(1, 8)
        running = Request(line, "a")
        await settle()
        unlucky, lucky = Request(line, "a"), Request(line, "a")
        await settle()
        line._release("a", 1)  # the place goes to the unlucky one, whose task has not run yet
        unlucky.task.cancel()
        await settle()
        assert lucky.is_through
        line._requests += 1  # taken back by `running`, whose place was released above
        line._running["a"] += 1
        await end([running, lucky])
        assert line.num_running == 0

    asyncio.run(story())


def test_wide_requests_are_not_passed_over():
    async def story():
        line = Line(8, 64)
        narrow = [Request(line, "me") for _ in range(8)]
        wide = Request(line, "me", rows=8)
        more = [Request(line, "me") for _ in range(4)]
        await settle()
        assert not any(request.is_through for request in more)
        for request in narrow:
            request.may_end.set()
        await settle()
        assert wide.is_through
        await end([*narrow, wide, *more])

    asyncio.run(story())


def test_a_draining_line_lets_the_accepted_ones_end():
    async def story():
        line = Line(1, 8)
        requests = [Request(line, "a") for _ in range(2)]
        await settle()
        draining = asyncio.create_task(line.drain(5))
        await settle()
        late = Request(line, "a")
        await settle()
        assert isinstance(late.error, EngineUnavailable)
        for request in requests:
            request.may_end.set()
        await draining
        assert [request.error for request in requests] == [None, None]

    asyncio.run(story())


# --- the switch ---


def test_the_switch_by_hand(tmp_path):
    path = tmp_path / "switch.json"
    with TestClient(create_app(EchoEngine(), degrade_file=path, degrade_text="Back at nine.")) as http:
        assert http.post("/admin/degrade", json={"mode": "canned"}).json()["mode"] == "canned"
        answer = post(http).json()
        assert answer["choices"][0]["message"]["content"] == "Back at nine."
        assert answer["usage"]["total_tokens"] == 0
        assert "Back at nine." in post(http, stream=True).text
        http.post("/admin/degrade", json={"mode": "hide"})
        assert http.get("/readyz").json()["degraded"] == "hide"
        refused = post(http)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "degraded")
        assert "Retry-After" in refused.headers
        assert http.post("/admin/degrade", json={"mode": "x"}).status_code == 422
    with TestClient(create_app(EchoEngine(), degrade_file=path)) as http:  # after a restart
        assert http.get("/admin/degrade").json()["mode"] == "hide"
        http.post("/admin/degrade", json={"mode": "off"})
        assert post(http).status_code == 200
    path.write_text("{}")
    with pytest.raises(RecipeError, match="degrade_file"):
        create_app(EchoEngine(), degrade_file=path)


def test_a_held_line_gives_up_at_its_time():
    with TestClient(create_app(EchoEngine(), queue_timeout_s=0.05)) as http:
        http.post("/admin/degrade", json={"mode": "queue"})
        assert post(http).status_code == 503
        http.post("/admin/degrade", json={"mode": "off"})
        assert post(http).status_code == 200


def test_the_switch_turns_itself_while_requests_fail_and_back():
    clock = Clock()
    switch = Switch("canned", clock=clock)
    for _ in range(3 * MIN_FAILURES):
        switch.note(True)
    for _ in range(MIN_FAILURES):
        switch.note(False)
    assert switch.mode == "off"  # a quarter failed
    for _ in range(MIN_FAILURES):
        switch.note(False)
    assert (switch.mode, switch.is_automatic) == ("canned", True)
    clock.now += COOLDOWN_S + 1
    assert switch.mode == "off"
    switch.note(False)  # still broken: at once again
    assert switch.mode == "canned"
    switch.turn("off")
    assert switch.mode == "off"
    switch.note(False)
    assert switch.mode == "off"


def test_failures_of_the_engine_turn_the_switch_and_refusals_do_not():
    with TestClient(create_app(EchoEngine(), degrade_auto="hide"), raise_server_exceptions=False) as http:
        for text in ["huge", "busy", "gone"] * MIN_FAILURES:
            post(http, messages=said(text))
        assert http.get("/admin/degrade").json()["mode"] == "off"
        statuses = [post(http, messages=said("broken")).status_code for _ in range(MIN_FAILURES + 1)]
        assert statuses == [500] * MIN_FAILURES + [503]


# --- log and numbers ---


def test_the_log_has_a_line_per_request_and_no_prompts_or_keys(tmp_path):
    path = tmp_path / "log" / "access.jsonl"
    with TestClient(create_app(EchoEngine(), access_log=str(path), api_key="s3cret")) as http:
        http.headers.update(bearer("s3cret"))
        answer = http.post(
            "/v1/chat/completions",
            json={"model": "echo", "messages": said("private words")},
            headers={"X-Request-Id": "mine-1"},
        )
        assert answer.headers["x-request-id"] == "mine-1"
        assert post(http, temprature=1).headers["x-request-id"].startswith("req-")
        http.get("/v1/models", headers=bearer("wrong-s3cret"))
        http.get("/healthz")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 400, 401]
    first = lines[0]
    assert (first["id"], first["client"], first["model"], first["finish"]) == ("mine-1", "api_key", "echo", "stop")
    assert (first["prompt_tokens"], first["completion_tokens"], first["cached_tokens"]) == (13, 13, 1)
    assert [line.get("error") for line in lines] == [None, "unknown_parameter", "invalid_api_key"]
    assert "private" not in path.read_text()
    assert "s3cret" not in path.read_text()


def test_prompts_are_logged_where_that_is_asked_for(tmp_path):
    path = tmp_path / "access.jsonl"
    with TestClient(create_app(EchoEngine(), access_log=str(path), log_prompts=True)) as http:
        post(http, messages=said("a line\nbreak"))
        http.post("/v1/completions", json={"model": "echo", "prompt": "raw"})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["said"] == said("a line\nbreak")
    assert second["said"] == "raw"


def test_a_log_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="access_log"):
        create_app(EchoEngine(), access_log=str(tmp_path))


def test_the_numbers_add_up(caplog):
    caplog.set_level(logging.CRITICAL)
    with TestClient(create_app(EchoEngine()), raise_server_exceptions=False) as http:
        post(http)
        post(http, stream=True)
        post(http, model="nobody")
        post(http, messages=said("broken"))
        text = http.get("/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    chat = 'path="/v1/chat/completions"'
    assert numbers[f'forge_requests_total{{model="echo",{chat},status="200"}}'] == "2.0"
    assert numbers[f'forge_requests_total{{model="",{chat},status="404"}}'] == "1.0"
    assert numbers[f'forge_requests_total{{model="echo",{chat},status="500"}}'] == "1.0"
    assert numbers['forge_completion_tokens_total{model="echo"}'] == "6.0"
    assert numbers['forge_finished_total{model="echo",reason="stop"}'] == "2.0"
    assert numbers["forge_first_token_seconds_count"] == "2.0"
    assert numbers["forge_ready"] == "1.0"
    assert numbers["forge_running"] == numbers["forge_waiting"] == "0.0"
