"""`forge-cli api` that makes itself known to a gateway: a real server, and a real gateway that is away for a while."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from llmforge import cli
from llmforge.config.schema import ServeConfig
from llmforge.errors import RecipeError
from llmforge.serve.announce import Announcer, own_url

PATIENCE_S = 120


class Processes:
    def __init__(self, folder):
        self.folder, self.started = folder, []

    def start(self, *words):
        env = os.environ | {"FORGE_API_KEY": "boss"}
        command = [sys.executable, "-m", "llmforge.cli", *map(str, words)]
        with open(self.folder / f"{len(self.started)}.err", "w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
        self.started.append(process)
        line = next(line for line in process.stdout if "http://" in line)
        return process, re.search(r"http://\S+/v1", line).group()

    def errors(self, process):
        return (self.folder / f"{self.started.index(process)}.err").read_text()


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    for process in processes.started:
        process.kill()
        process.wait()


def rows(url):
    try:
        answer = httpx.get(url.replace("/v1", "/workers"), headers={"Authorization": "Bearer boss"})
    except httpx.TransportError:
        return []
    return answer.json()["workers"]


def until(holds):
    ends_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def test_a_server_joins_a_gateway_stays_known_to_a_new_one_and_leaves(processes, tiny_model_dir, tmp_path):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    table = {"kind": "gateway", "port": port, "heartbeat_s": 0.3, "expire_s": 60, "workers": []}
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(table))
    gateway, url = processes.start("gateway", tmp_path / "gateway.yaml")
    model = (f"model_name_or_path={tiny_model_dir}", "template=chatml", "served_model_name=tiny", "device=cpu")
    worker, own = processes.start("api", *model, "port=0", f"gateway={url}", "worker_name=late", "worker_slots=3")
    until(lambda: [row["state"] for row in rows(url)] == ["up"])
    (row,) = rows(url)
    assert (row["name"], row["url"], row["registered"], row["slots"], row["models"]) == ("late", own, True, 3, ["tiny"])

    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    headers = {"Authorization": "Bearer boss"}
    answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.headers["x-forge-worker"]) == (200, "late")

    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(PATIENCE_S) == 0
    _, url = processes.start("gateway", tmp_path / "gateway.yaml")  # it knows nobody
    until(lambda: [row["state"] for row in rows(url)] == ["up"])

    worker.send_signal(signal.SIGTERM)
    until(lambda: rows(url) == [])  # long before it would expire
    assert worker.wait(PATIENCE_S) == 0
    said = processes.errors(worker)
    assert f"gateway http://127.0.0.1:{port}: registered as late" in said
    assert "no answer (" in said
    assert "boss" not in said


def test_a_gateway_on_this_machine_is_told_the_servers_own_host():
    assert own_url("127.0.0.1", 8000, "http://localhost:7690") == "http://127.0.0.1:8000/v1"
    assert own_url("::1", 8000, "http://127.0.0.1:7690") == "http://[::1]:8000/v1"
    assert own_url("0.0.0.0", 8000, "http://127.0.0.1:7690") == "http://127.0.0.1:8000/v1"
    assert own_url("10.0.0.5", 8000, "http://127.0.0.1") == "http://10.0.0.5:8000/v1"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"gateway": "10.0.0.1:7690"}, "gateway: got '10.0.0.1:7690', expected http://HOST:PORT"),
        ({"gateway": "http://a:b@h"}, "gateway: got"),
        ({"gateway": "http://127.0.0.1:1", "gateway_key_env": "NO_SUCH"}, "gateway_key_env: NO_SUCH is not set"),
        ({"gateway": "http://no.such.host.invalid"}, "gateway: no way to no.such.host.invalid"),
    ],
)
def test_a_gateway_that_cannot_be_joined_is_said_before_the_model_is_loaded(monkeypatch, said, expected):
    monkeypatch.setenv("FORGE_API_KEY", "boss")
    with pytest.raises(RecipeError, match=re.escape(expected)):
        Announcer.from_config(ServeConfig(**said), 8000)


def test_a_server_with_keys_tells_the_gateway_where_to_find_one(monkeypatch):
    monkeypatch.setenv("FORGE_API_KEY", "boss")
    known = {"gateway": "http://127.0.0.1:7690/v1", "worker_name": "a"}
    row = {"name": "a", "url": "http://127.0.0.1:8000/v1", "slots": 1}
    assert Announcer.from_config(ServeConfig(**known), 8000).row == row
    assert Announcer.from_config(ServeConfig(**known, api_key="x"), 8000).row == row | {"key_env": "FORGE_API_KEY"}
    named = ServeConfig(**known, api_key="x", worker_key_env="W")
    assert Announcer.from_config(named, 8000).row == row | {"key_env": "W"}
    assert Announcer.from_config(ServeConfig(), 8000) is None


def test_the_command_refuses_a_gateway_without_its_key(tiny_model_dir, capsys, monkeypatch):
    monkeypatch.delenv("FORGE_API_KEY", raising=False)
    words = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "port=0", "gateway=http://127.0.0.1:1"]
    assert cli.main(["api", *words]) == 2
    assert "a gateway takes workers that come with an admin's key" in capsys.readouterr().err
