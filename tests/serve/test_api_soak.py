"""`forge-cli api` as a process of its own under thousands of requests: UX.md's A4, A5, A11 and memory over time.

Times are compared with times of the same minute, not with fixed numbers, but for what a machine must always manage.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import time

import aiohttp
import httpx
import psutil
import pytest
from live_server import GREEDY

pytestmark = pytest.mark.slow
SHORT = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": True}
OVERLOAD_S = 60.0


class Process:
    """A server with the keys "one" and "two"."""

    def __init__(self, run_dir, folder):
        (folder / "keys.yaml").write_text("a: one\nb: two\n")
        words = [str(run_dir), *GREEDY, "served_model_name=tuned", "port=0", f"access_log={folder / 'log'}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmforge.cli", "api", *words, f"api_keys_file={folder / 'keys.yaml'}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = next(line for line in self.process.stdout if line.startswith("Serving "))
        self.url = re.search(r"(http://\S+)/v1", line)[1]

    def rss(self):
        """Bytes of the server and its workers."""
        own = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))

    def ready(self):
        return httpx.get(f"{self.url}/readyz").json()

    def gauges(self):
        """Requests in server and engine."""
        text = httpx.get(f"{self.url}/metrics", headers={"Authorization": "Bearer one"}).text
        return {
            name: float(re.search(rf"^forge_{name} (\S+)", text, re.MULTILINE)[1])
            for name in ("running", "waiting", "engine_running", "engine_waiting")
        }

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
            tokens = answer["usage"]["completion_tokens"] if response.status == 200 else 0
            return response.status, time.monotonic() - started, tokens


@pytest.fixture(scope="module")
def live(run_dir, tmp_path_factory):
    live = Process(run_dir, tmp_path_factory.mktemp("soak"))
    try:
        yield live
    finally:
        live.process.terminate()
        assert live.process.wait(timeout=60) == 0


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


def test_memory_is_flat_over_ten_thousand_requests(live):
    asyncio.run(closed_loop(live, 2000, 32))
    before = live.rss()
    results = asyncio.run(closed_loop(live, 10_000, 32))
    assert {status for status, _, _ in results} == {200}
    growth = live.rss() - before
    print(f"RSS {before / 2**20:.0f} MiB, grew by {growth / 2**20:.1f} MiB over 10,000 requests")
    assert growth < 0.05 * before
    assert live.is_idle()


def test_a_thousand_clients_that_leave_leave_no_place_taken(live):
    draw = random.Random(0)

    async def leave(http, limit):
        async with limit:
            stream = draw.random() < 0.5
            asking = asyncio.create_task(live.ask(http, max_tokens=300, stream=stream, n=draw.choice([1, 4])))
            await asyncio.wait({asking}, timeout=draw.uniform(0, 0.1))
            asking.cancel()
            await asyncio.wait({asking})

    async def story():
        limit = asyncio.Semaphore(16)
        async with session() as http:
            await asyncio.gather(*(leave(http, limit) for _ in range(1000)))

    asyncio.run(story())
    assert live.is_idle(), live.ready()
    ends_at = time.monotonic() + 5
    while sum(live.gauges().values()) and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert live.gauges() == dict.fromkeys(("running", "waiting", "engine_running", "engine_waiting"), 0.0)
    assert asyncio.run(closed_loop(live, 64, 16))[-1][0] == 200


def test_overload_is_refused_at_once_and_costs_no_goodput(live):
    """A4: ten times as many requests as it can do."""
    started = time.monotonic()
    fine = asyncio.run(closed_loop(live, 600, 64, max_tokens=32))
    assert {status for status, _, _ in fine} == {200}
    peak = 600 / (time.monotonic() - started)
    before = live.rss()
    most_waiting = 0

    async def flood():
        nonlocal most_waiting
        async with session() as http:
            started, asked = time.monotonic(), []
            while (now := time.monotonic() - started) < OVERLOAD_S:
                while len(asked) < 10 * peak * now and sum(not task.done() for task in asked) < 200:
                    asked.append(asyncio.create_task(live.ask(http, max_tokens=32)))
                async with http.get(f"{live.url}/readyz") as response:
                    most_waiting = max(most_waiting, (await response.json())["waiting"])
                await asyncio.sleep(0.01)
            seconds = time.monotonic() - started
            return seconds, await asyncio.gather(*asked)

    seconds, results = asyncio.run(flood())
    served = [result for result in results if result[0] == 200]
    refused = sorted(took for status, took, _ in results if status == 429)
    assert {status for status, _, _ in results} == {200, 429}
    print(
        f"peak {peak:.0f}/s; overload: {len(results) / seconds:.0f}/s asked, {len(served) / seconds:.0f}/s served, "
        f"refusal p50 {refused[len(refused) // 2] * 1000:.0f} ms, RSS {(live.rss() - before) / 2**20:+.0f} MiB"
    )
    assert most_waiting <= 64
    assert len(served) / seconds >= 0.75 * peak  # the load generator shares the processors with the server
    assert live.rss() - before < 64 * 2**20
    assert live.is_idle(within_s=5)


def test_short_requests_of_one_client_beside_the_long_ones_of_another(live):
    """A11."""

    async def shorts(http):
        return [(await live.ask(http, key="two", max_tokens=8))[1] for _ in range(40)]

    async def story():
        async with session() as http:
            await shorts(http)
            alone = p95(await shorts(http))
            longs = [asyncio.create_task(live.ask(http, max_tokens=400)) for _ in range(64)]
            await asyncio.sleep(0.5)
            beside = []
            while not all(task.done() for task in longs) and len(beside) < 200:
                beside.append((await live.ask(http, key="two", max_tokens=8))[1])
            assert {result[0] for result in await asyncio.gather(*longs)} == {200}
            return alone, p95(beside), len(beside)

    alone, beside, count = asyncio.run(story())
    print(f"p95 alone {alone * 1000:.0f} ms, beside 64 long requests {beside * 1000:.0f} ms ({count} requests)")
    assert beside <= 3 * alone
