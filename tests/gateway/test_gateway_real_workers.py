"""Two `forge-cli api` workers of a tiny model behind a gateway, one of them killed under load."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys

import httpx
import psutil
import yaml

from llmforge.bench.serve_client import Client, closed_loop

KEY = "boss"
NUM_REQUESTS, CONCURRENCY, NUM_TOKENS = 60, 12, 60


def test_a_worker_killed_under_load_costs_no_request_of_the_other(tiny_model_dir, tmp_path):
    """60 requests by 12 clients, every second one streamed; after the tenth answer one worker is killed with -9."""
    api = [str(word) for word in (f"model_name_or_path={tiny_model_dir}", "template=chatml", "served_model_name=tiny")]
    workers = [{"name": name, "run": [*api, "device=cpu"]} for name in ("left", "right")]
    table = {"kind": "gateway", "port": 0, "heartbeat_s": 0.3, "log_dir": str(tmp_path), "workers": workers}
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(table))
    command = [sys.executable, "-m", "llmforge.cli", "gateway", str(tmp_path / "gateway.yaml")]
    env = os.environ | {"FORGE_API_KEY": KEY}  # the workers inherit it
    gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        url = re.search(r"http://\S+/v1", gateway.stdout.readline()).group()
        samples, before, after = asyncio.run(load_and_kill(url, gateway.pid))
    finally:
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(60) == 0
    errors = [sample for sample in samples if sample.error]
    assert len(samples) == NUM_REQUESTS
    # A stream that had begun at the killed worker ends with an error that says so. Nothing else is lost.
    assert {sample.error for sample in errors} <= {"stream"}
    assert all("worker left was lost in the middle of this reply" in sample.detail for sample in errors)
    left, right = after
    assert len(errors) == left["cut"]
    assert right["cut"] == right["retried"] == 0
    assert (before["state"], left["url"] != before["url"]) == ("up", True)
    assert (right["state"], right["running"], left["running"]) == ("up", 0, 0)
    assert left["answered"] + right["answered"] == NUM_REQUESTS + 1  # and the one that warmed up


async def load_and_kill(url, gateway_pid):
    """The load's samples, the row of the killed worker before, and both rows after."""
    root = url.removesuffix("/v1")
    async with httpx.AsyncClient(timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as http:

        async def rows():
            return (await http.get(f"{root}/workers")).json()["workers"]

        for _ in range(1200):
            await asyncio.sleep(0.1)
            if all(row["state"] == "up" for row in await rows()):
                break
        before = (await rows())[0]
        port = int(before["url"].split(":")[2].removesuffix("/v1"))
        async with Client(url, KEY, 120) as client:
            await client.ask(body(0))
            loading = asyncio.create_task(closed_loop(client, body, CONCURRENCY, NUM_REQUESTS))
            while (await rows())[0]["answered"] < 10:
                await asyncio.sleep(0.01)
            kill_listener(gateway_pid, port)
            samples = await loading
        return samples, before, await rows()


def body(number):
    return {
        "model": "tiny", "messages": [{"role": "user", "content": f"report {number}"}], "temperature": 0,
        "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": number % 2 == 0,
    }  # fmt: skip


def kill_listener(gateway_pid, port):
    """Kill the process that listens at a port, with its children: what the kernel does when memory is full."""
    for process in psutil.Process(gateway_pid).children(recursive=True):
        if any(place.laddr.port == port and place.status == "LISTEN" for place in process.net_connections("tcp")):
            for child in process.children(recursive=True):
                os.kill(child.pid, signal.SIGKILL)
            process.kill()
            return
    raise AssertionError(f"nothing listens at {port}")
