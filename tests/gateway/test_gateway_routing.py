"""The gateway in front of workers with known answers, over real connections."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

WORKER = Path(__file__).parent / "plain_worker.py"
PATIENCE_S = 60


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class House:
    """A gateway and its workers, each a process; `ask` sends a chat and returns what came."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.path = folder / "gateway.yaml"

    def worker(self, name, *words):
        port = free_port()
        output = open(self.folder / f"{name}.out", "w")  # noqa: SIM115  closed with the process
        self.processes.append(subprocess.Popen([sys.executable, WORKER, str(port), name, *words], stdout=output))
        return f"http://127.0.0.1:{port}/v1"

    def write(self, workers, **keys):
        table = {"kind": "gateway", "port": 0, "heartbeat_s": 0.2, "log_dir": str(self.folder), "workers": workers}
        self.path.write_text(yaml.safe_dump(table | keys))

    def start(self, workers, env=None, **keys):
        self.write(workers, **keys)
        command = [sys.executable, "-m", "llmforge.cli", "gateway", str(self.path)]
        self.gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        self.processes.append(self.gateway)
        url = re.search(r"http://\S+(?=/v1)", self.gateway.stdout.readline()).group()
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)
        self.until(lambda: self.http.get("/healthz").status_code == 200)

    def until(self, holds):
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                if holds():
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < ends_at
            time.sleep(0.05)

    def up(self, *names):
        self.until(lambda: {w["name"] for w in self.table() if w["state"] == "up"} == set(names))

    def table(self):
        return self.http.get("/workers").json()["workers"]

    def ask(self, text="hello", model="shared", **more):
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        answer = self.http.post("/v1/chat/completions", json=body)
        if answer.status_code == 200 and not more.get("stream"):
            return json.loads(answer.json()["choices"][0]["message"]["content"])
        return answer

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two workers a and b that stay alive."""
    house = House(tmp_path_factory.mktemp("pair"))
    workers = [{"name": name, "url": house.worker(name)} for name in ("a", "b")]
    names = {"clerk": {"serves": "only-a", "title": "The clerk", "roles": {"assistant": "Clerk"}}, "gone": "nothing"}
    house.start(workers, models=names)
    house.up("a", "b")
    yield house
    house.close()


def test_a_request_goes_to_the_worker_with_the_least_to_do(pair):
    with ThreadPoolExecutor(4) as pool:
        names = [answer["name"] for answer in pool.map(lambda _: pair.ask("slow"), range(4))]
    assert sorted(names) == ["a", "a", "b", "b"]


def test_a_model_of_one_worker_goes_there(pair):
    assert {pair.ask(model="only-b")["name"] for _ in range(3)} == {"b"}


def test_a_name_of_the_table_is_asked_for_under_the_workers_own(pair):
    assert pair.ask(model="clerk")["model"] == "only-a"
    cards = {card["id"]: card for card in pair.http.get("/v1/models").json()["data"]}
    assert set(cards) == {"shared", "only-b", "clerk"}
    assert (cards["clerk"]["title"], cards["clerk"]["workers_up"]) == ("The clerk", 1)
    assert cards["shared"]["workers_up"] == 2
    assert pair.http.get("/v1/models/clerk").json()["id"] == "clerk"


def test_a_stream_passes_through_as_it_came(pair):
    answer = pair.ask(stream=True, model="clerk")
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-forge-worker"] == "a"
    lines = [line for line in answer.text.split("\n\n") if line]
    assert [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:3]] == ["a0 ", "a1 ", "a2 "]
    assert lines[3] == "data: [DONE]"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/chat/completions", {"model": "x"}, 404, "model 'x' is not served here; known: "),
        ("POST", "/v1/chat/completions", {"messages": []}, 422, "model: is required"),
        ("POST", "/v1/chat/completions", [1], 422, "no JSON object"),
        ("GET", "/v1/chat/completions", None, 405, "GET does not work here"),
        ("GET", "/v1/models/x", None, 404, "not served here"),
        ("GET", "/nothing", None, 404, "no such address: /nothing"),
        ("POST", "/workers", {"name": "c", "url": "http://127.0.0.1:1/v1"}, 403, "only a key of an admin"),
    ],
)
def test_errors_have_openais_shape(pair, method, path, body, status, said):
    answer = pair.http.request(method, path, json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_workers_own_refusal_passes_through(pair):
    assert pair.ask("wrong").status_code == 400
    assert pair.ask("bug").status_code == 500


def test_what_is_no_http_is_answered_as_the_server_answers_it(pair):
    with socket.create_connection(("127.0.0.1", pair.http.base_url.port)) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "bad_http"


def test_a_body_above_the_cap_is_refused(pair):
    assert pair.ask("x" * (5 << 20)).status_code == 413


def test_a_client_that_leaves_frees_its_worker(pair):
    body = {"model": "only-b", "messages": [{"role": "user", "content": "wait for leave"}], "stream": True}
    with pair.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    pair.until(lambda: "client left" in (pair.folder / "b.out").read_text())
    pair.until(lambda: not any(worker["running"] for worker in pair.table()))


def test_metrics_count_by_worker(pair):
    pair.ask(model="clerk")
    page = pair.http.get("/metrics").text
    assert 'forge_gateway_worker_up{worker="a"} 1.0' in page
    assert re.search(r'forge_gateway_requests_total\{status="200",worker="a"\} \d', page)


def test_a_request_that_kills_its_worker_is_answered_by_another(house):
    mortal = house.worker("a", "mortal")
    house.start([{"name": "a", "url": mortal, "slots": 9}, {"name": "b", "url": house.worker("b")}])
    house.up("a", "b")
    answers = [house.ask("die")["name"] for _ in range(4)]  # the first or second of them goes to a
    assert answers == ["b"] * 4
    row = next(worker for worker in house.table() if worker["name"] == "a")
    assert (row["state"], row["retried"]) == ("down", 1)
    assert house.ask("hello", model="only-a").json()["error"]["message"].startswith("no worker of 'only-a' is up (a: ")


def test_a_stream_cut_in_the_middle_says_so_and_is_not_asked_again(house):
    house.start([{"name": "a", "url": house.worker("a", "mortal")}])
    house.up("a")
    answer = house.ask("die in the middle", stream=True)
    assert '"a0 "' in answer.text
    assert "a1" not in answer.text
    error, done = [line for line in answer.text.split("\n\n") if line][-2:]
    assert json.loads(error.strip()[6:])["error"]["code"] == "worker_lost"
    assert done == "data: [DONE]"
    assert house.table()[0]["cut"] == 1


def test_a_busy_worker_passes_its_requests_to_another(house):
    house.start([{"name": "a", "url": house.worker("a", "busy")}, {"name": "b", "url": house.worker("b")}])
    house.up("a", "b")
    assert {house.ask()["name"] for _ in range(4)} == {"b"}
    refused = house.ask(model="only-a")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")


def test_a_worker_that_drains_gets_nothing(house):
    house.start([{"name": "a", "url": house.worker("a", "draining")}, {"name": "b", "url": house.worker("b")}])
    house.up("b")
    assert {house.ask()["name"] for _ in range(3)} == {"b"}
    assert next(worker for worker in house.table() if worker["name"] == "a")["why"] == "not ready"


def test_workers_register_keep_up_and_are_struck_off(house, monkeypatch):
    import os

    env = os.environ | {"FORGE_API_KEY": "boss", "WORKER_KEY": "w-key"}
    house.start([], env=env, expire_s=1.0)
    assert house.http.get("/readyz").status_code == 503
    assert house.ask().status_code == 401
    house.http.headers["Authorization"] = "Bearer boss"
    row = {"name": "late", "url": house.worker("late"), "key_env": "WORKER_KEY"}

    def is_up():
        said = house.http.post("/workers", json=row).json()["workers"][0]
        return said["state"] == "up"

    house.until(is_up)
    assert house.ask()["key"] == "Bearer w-key"
    house.until(lambda: house.table() == [])  # silent for a second
    house.until(is_up)
    assert house.http.delete("/workers/late").json() == {"left": "late"}
    assert house.table() == []
    bad = house.http.post("/workers", json={"name": "x", "url": "ftp://y"})
    assert (bad.status_code, "expected http://HOST:PORT/v1" in bad.text) == (422, True)


def test_a_changed_table_is_taken_over_and_a_broken_one_is_not(house):
    first = {"name": "a", "url": house.worker("a")}
    house.start([first])
    house.up("a")
    house.write([first, {"name": "b", "url": house.worker("b")}])
    house.up("a", "b")
    house.path.write_text("kind: gateway\nworkers: 5\nnonsense: 1\n")
    time.sleep(0.6)
    house.up("a", "b")


def test_a_started_worker_that_dies_is_started_again(house):
    command = f"exec {sys.executable} {WORKER} {{port}} mine"
    house.start([{"name": "mine", "command": command}])
    house.up("mine")
    url = house.table()[0]["url"]
    with pytest.raises(httpx.TransportError):
        httpx.get(url.removesuffix("/v1") + "/die")
    house.until(lambda: house.table()[0]["url"] not in (url, None) and house.table()[0]["state"] == "up")
    assert house.ask()["name"] == "mine"
    house.gateway.send_signal(signal.SIGTERM)
    assert house.gateway.wait(PATIENCE_S) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(house_url(house))


def house_url(house):
    return f"{house.http.base_url}/healthz"
