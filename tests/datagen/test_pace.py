"""Pacing: a server's limit is found, used and kept to."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque

import pytest
from scripted_teacher import Script, serving

from llmforge.datagen.generate import generate
from llmforge.datagen.pace import Pacer
from llmforge.datagen.recipe import load_dataset_recipe


class Clock:
    """A clock that only sleeping moves, so that minutes pass in milliseconds."""

    def __init__(self):
        self.now, self.waiting, self.count = 0.0, [], 0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        done = asyncio.get_running_loop().create_future()
        self.count += 1
        self.waiting.append((self.now + seconds, self.count, done))
        await done

    async def run(self, until):
        while self.now < until:
            for _ in range(40):
                await asyncio.sleep(0)
            if not self.waiting:
                return
            self.waiting.sort()
            at, _, done = self.waiting.pop(0)
            self.now = max(self.now, at)
            done.set_result(None)


def simulate(limit_of, until, workers=16, latency=0.05):
    """(accepted, refused) times against a limit that may change; each worker asks again and again."""
    clock, accepted, refused, window = Clock(), [], [], deque()

    async def worker(pacer):
        while clock.now < until:
            sent = await pacer.enter()
            while window and window[0] <= clock.now - 1:
                window.popleft()
            if len(window) < limit_of(clock.now):
                window.append(clock.now)
                accepted.append(clock.now)
                await clock.sleep(latency)
                await pacer.taken(sent)
            else:
                refused.append(clock.now)
                await pacer.refused(sent, 1.0)

    async def main():
        pacer = Pacer(workers, now=clock, sleep=clock.sleep)
        tasks = [asyncio.create_task(worker(pacer)) for _ in range(workers)]
        await clock.run(until)
        for task in tasks:
            task.cancel()

    asyncio.run(main())
    return accepted, refused


@pytest.mark.parametrize(("limit", "seconds"), [(2, 120), (5, 100), (20, 60)])
def test_a_limit_is_used_to_nine_tenths_with_one_in_twenty_refused(limit, seconds):
    accepted, refused = simulate(lambda now: limit, seconds)
    assert len(accepted) >= 0.9 * seconds * limit
    assert len(refused) < 0.05 * (len(accepted) + len(refused))


def test_without_a_limit_nothing_is_held_back():
    accepted, refused = simulate(lambda now: 10**9, 3, workers=4)
    assert not refused
    assert len(accepted) >= 0.95 * 3 / 0.05 * 4


def test_a_limit_that_is_raised_is_found_again():
    accepted, _ = simulate(lambda now: 2 if now < 20 else 10**9, 120, workers=2)
    assert sum(at > 115 for at in accepted) > 5 * 10


@pytest.mark.slow
def test_a_real_server_with_five_requests_a_second_for_a_minute(tmp_path):
    pytest.importorskip("openai")
    (tmp_path / "ask.j2").write_text("Row {{ id }}.")
    (tmp_path / "answer.json").write_text(json.dumps({"type": "object", "properties": {"a": {"type": "string"}}}))
    with serving(Script(limit=5, latency_s=0.05)) as teacher:
        (tmp_path / "r.yaml").write_text(
            "kind: dataset\nname: pace\nrows: 330\nslots: {id: {uuid: 4}}\nprompt: ask.j2\noutput_schema: answer.json\n"
            f"teacher: {{base_url: '{teacher.url}', model: m, parallel: 16}}\n"
        )
        started = time.monotonic()
        result = generate(load_dataset_recipe([str(tmp_path / "r.yaml"), f"store.dir={tmp_path / 'work'}"]))
        elapsed_s = time.monotonic() - started
        log = teacher.script.requests
    refused = sum(entry["status"] == 429 for entry in log)
    span_s = log[-1]["at"] - log[0]["at"]
    print(f"{result.counts['accepted']} rows in {span_s:.1f} s ({elapsed_s:.1f} in all), {refused} refused")
    assert result.counts["accepted"] == 330
    assert span_s >= 60
    assert (len(log) - refused) / span_s >= 0.9 * 5
    assert refused < 0.05 * len(log)
