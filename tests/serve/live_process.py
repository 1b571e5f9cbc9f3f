"""`forge-cli api` as a process of its own, watched from outside, and clients that ask it many things at once."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time

import aiohttp
import httpx
import psutil
from live_server import GREEDY

HEADERS = {"Authorization": "Bearer one", "Content-Type": "application/json"}
SHORT = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": True}


class Process:
    """A server with the keys "one" and "two"."""

    def __init__(self, run_dir, folder, *more):
        self.log = folder / "log"
        (folder / "keys.yaml").write_text("a: one\nb: two\n")
        words = [str(run_dir), *GREEDY, "served_model_name=tuned", "port=0", "max_connections=1000"]
        words += [f"access_log={self.log}", f"api_keys_file={folder / 'keys.yaml'}", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmforge.cli", "api", *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = next(line for line in self.process.stdout if line.startswith("Serving "))
        self.url = re.search(r"(http://\S+)/v1", line)[1]
        self.port = int(self.url.rpartition(":")[2])

    def rss(self):
        """Bytes of the server and its workers."""
        own = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))

    def num_logged(self):
        return len(self.log.read_text().splitlines())

    def logged(self, first):
        """The lines of the access log from there on."""
        return [json.loads(line) for line in self.log.read_text().splitlines()[first:]]

    def head(self, length, line="POST /v1/chat/completions"):
        fields = "\r\n".join(f"{name}: {value}" for name, value in HEADERS.items())
        return f"{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{length}\r\n\r\n".encode()

    def ready(self):
        return httpx.get(f"{self.url}/readyz").json()

    def gauges(self):
        """Requests in server and engine."""
        return gauges(httpx.get(f"{self.url}/metrics", headers=HEADERS).text)

    def is_idle(self, within_s=5.0):
        ends_at = time.monotonic() + within_s
        while (now := self.ready())["running"] or now["waiting"]:
            if time.monotonic() > ends_at:
                return False
            time.sleep(0.05)
        return True

    async def ask(self, session, key="one", **changes):
        """(status, seconds, tokens)."""
        started = time.monotonic()
        body, headers = {**SHORT, **changes}, {"Authorization": f"Bearer {key}"}
        async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            answer = await response.json()
            assert response.status != 429 or int(response.headers["Retry-After"]) >= 1
            tokens = answer["usage"]["completion_tokens"] if response.status == 200 else 0
            return response.status, time.monotonic() - started, tokens

    def stop(self):
        """The exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert self.stop() == 0


def gauges(text):
    """Requests in the line and in the engine, of what /metrics says."""
    return {
        name: float(re.search(rf"^forge_{name} (\S+)", text, re.MULTILINE)[1])
        for name in ("running", "waiting", "engine_running", "engine_waiting")
    }


def session():
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300), trust_env=False
    )


async def closed_loop(live, num_requests, at_once, **changes):
    """Results of so many requests, so many at once."""
    left, results = iter(range(num_requests)), []

    async def client(http):
        for _ in left:
            results.append(await live.ask(http, **changes))

    async with session() as http:
        await asyncio.gather(*(client(http) for _ in range(at_once)))
    return results


def p95(seconds):
    return sorted(seconds)[int(0.95 * len(seconds))]
