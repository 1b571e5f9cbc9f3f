"""`forge-cli api` beside clients that mean it no good, and without its engine: UX.md's A2, A6 and A8."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import aiohttp
import httpx
import psutil
import pytest
from live_process import HEADERS, Process, p95, session

pytestmark = pytest.mark.slow
NUM_SLOW = 500


@pytest.fixture(scope="module")
def live(run_dir, tmp_path_factory):
    with Process(run_dir, tmp_path_factory.mktemp("soak")) as live:
        yield live


async def compared(live, attack, num_rounds=8, per_round=25):
    """Sorted seconds of one client's requests, (alone, beside an attack), in turns of the same minutes."""
    found = ([], [])
    async with session() as http:
        for number in range(2 * num_rounds):
            attacking = asyncio.create_task(attack()) if number % 2 else None
            await asyncio.sleep(0.5)
            found[number % 2].extend([(await live.ask(http, max_tokens=128))[1] for _ in range(per_round)])
            if attacking is not None:
                attacking.cancel()
                await asyncio.wait({attacking})
                assert attacking.cancelled() or not attacking.exception()
    return sorted(found[0]), sorted(found[1])


def told(what, alone, beside):
    print(", ".join(f"{what}: {name} p50 {s[len(s) // 2] * 1000:.0f} p95 {p95(s) * 1000:.0f} p99 {s[-3] * 1000:.0f} ms"
                    for name, s in (("alone", alone), ("beside", beside))))  # fmt: skip


def test_bodies_that_are_too_large_hold_up_nobody(live):
    """A2: 5, 50 and 500 MB, and one without an end, twice a second."""

    async def attack():
        async with session() as http:
            while True:
                for size in (5, 50, 500):
                    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
                    writer.write(live.head(f"Content-Length: {size * 10**6}"))
                    writer.write(b"x" * min(size * 10**6, 10**7))
                    started = time.monotonic()
                    assert b" 413 " in await reader.readline()
                    answered.append(time.monotonic() - started)
                    writer.close()
                    await asyncio.sleep(0.5)
                with contextlib.suppress(aiohttp.ClientError):
                    await http.post(f"{live.url}/v1/chat/completions", data=endless(), headers=HEADERS)
                await asyncio.sleep(0.5)

    async def endless():
        while True:
            yield b"x" * 65536

    answered = []
    before = live.rss()
    alone, beside = asyncio.run(compared(live, attack))
    told("large bodies", alone, beside)
    print(f"413 after {max(answered) * 1000:.0f} ms at the latest, RSS {(live.rss() - before) / 2**20:+.0f} MiB")
    assert p95(answered) <= 0.1
    assert beside[-3] <= 1.2 * alone[-3]  # p99 of 200
    assert live.rss() - before < 64 * 2**20


def test_slow_senders_and_readers_hold_up_nobody(live):
    """A6: 500 connections that send a byte a second, and five that read one."""

    async def attack():
        slow = [await asyncio.open_connection("127.0.0.1", live.port, limit=1) for _ in range(NUM_SLOW)]
        try:
            for _, writer in slow[:5]:
                writer.write(live.head("Content-Length: 0", "GET /docs"))
            for place in itertools.count():
                for _, writer in slow[5:]:
                    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: "[place % 40 : place % 40 + 1])
                for reader, _ in slow[:5]:
                    await asyncio.wait_for(reader.read(1), 1)
                await asyncio.sleep(1)
        finally:
            for _, writer in slow:
                writer.transport.abort()

    alone, beside = asyncio.run(compared(live, attack, num_rounds=4, per_round=50))
    told(f"{NUM_SLOW} slow clients", alone, beside)
    assert p95(beside) <= 1.2 * p95(alone)


def test_a_server_whose_engine_is_killed_says_so_and_ends_with_1(run_dir, tmp_path):
    """A8: what runs it may start it anew."""
    dying = Process(run_dir, tmp_path, "replicas=1")
    try:
        for child in psutil.Process(dying.process.pid).children(recursive=True):
            child.kill()
        ends_at = time.monotonic() + 10
        while httpx.get(f"{dying.url}/readyz").status_code != 503:
            assert time.monotonic() < ends_at
            time.sleep(0.05)
        assert httpx.get(f"{dying.url}/healthz").status_code == 200
        assert dying.process.wait(timeout=60) == 1
    finally:
        dying.process.kill()
        dying.process.wait()
