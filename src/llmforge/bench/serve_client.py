"""The load generator: an asyncio client for one OpenAI-compatible server, in a closed or an open loop."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmforge.bench.serve_stats import Sample
from llmforge.errors import RunError, require

if TYPE_CHECKING:
    import aiohttp

Body = Mapping[str, Any]
OPEN_LOOP_SEED = 0


class Client:
    """Sends chat completions and times them.

    Args:
        url: up to and with `/v1`.
        key: sent as a bearer token.
        timeout_s: seconds after which a request counts as failed.
        count: tokens of a reply, for servers that do not say how many they made.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float, count: Callable[[str], int] | None = None):
        self.url, self.timeout_s, self.count = url, timeout_s, count
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.started = 0.0

    async def __aenter__(self) -> Client:
        require("aiohttp", "serve", "bench serve")
        import aiohttp

        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            headers=self.headers,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def now(self) -> float:
        return time.perf_counter() - self.started

    async def ask(self, body: Body, due: float | None = None) -> Sample:
        """One request from its first byte out to its last byte in. Never raises for what the server or the way does."""
        import aiohttp

        sample = Sample(due=self.now() if due is None else due, end=0.0)
        try:
            async with self.session.post(f"{self.url}/chat/completions", json=body) as answer:
                if answer.status != 200:
                    sample.error, sample.detail = str(answer.status), (await answer.text())[:300]
                elif body.get("stream"):
                    await self._read_stream(answer.content, sample)
                else:
                    self._read_whole(await answer.json(), sample)
        except TimeoutError:
            sample.error = "timeout"
        except (aiohttp.ClientError, ConnectionError, ValueError, KeyError, TypeError, IndexError) as error:
            sample.error, sample.detail = "connection", repr(error)[:300]
        sample.end = self.now()
        return sample

    async def _read_stream(self, content: aiohttp.StreamReader, sample: Sample) -> None:
        texts, last, finished = [], 0.0, False
        async for data in events(content):
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if "error" in event:
                sample.error, sample.detail = "stream", str(event["error"])[:300]
                return
            if usage := event.get("usage"):
                sample.num_tokens, sample.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            for choice in event.get("choices") or ():
                finished |= choice.get("finish_reason") is not None
                if text := choice["delta"].get("content"):
                    now = self.now()
                    if sample.first is None:
                        sample.first = now
                    else:
                        sample.gaps.append(now - last)
                    last = now
                    texts.append(text)
        if not finished:
            sample.error, sample.detail = "cut", "the stream ended without a finish_reason"
        elif not sample.num_tokens:
            sample.num_tokens = self.count("".join(texts)) if self.count else len(texts)

    def _read_whole(self, answer: dict[str, Any], sample: Sample) -> None:
        usage = answer["usage"]
        sample.num_tokens, sample.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]


async def events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events, however long a line is."""
    rest = b""
    while part := await content.readany():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def closed_loop(client: Client, body: Callable[[int], Body], concurrency: int, num_requests: int) -> list[Sample]:
    """`concurrency` clients, each of which sends its next request when it has the answer to the last."""
    numbers = iter(range(num_requests))
    samples: list[Sample] = []

    async def one() -> None:
        for number in numbers:
            samples.append(await client.ask(body(number)))

    client.started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(min(concurrency, num_requests))))
    return samples


async def open_loop(client: Client, body: Callable[[int], Body], rate: float, num_requests: int) -> list[Sample]:
    """Requests at random moments, `rate` per second on average (Poisson), whatever the server does.

    Latency counts from the planned moment, so a server that stalls is not spared the requests that came meanwhile.
    """
    draw = random.Random(OPEN_LOOP_SEED)
    tasks = []
    due = 0.0
    client.started = time.perf_counter()
    for number in range(num_requests):
        due += draw.expovariate(rate)
        await asyncio.sleep(due - client.now())
        tasks.append(asyncio.create_task(client.ask(body(number), due)))
    return list(await asyncio.gather(*tasks))


async def probe(client: Client, body: Body) -> tuple[dict[str, Any], str]:
    """Which field makes this server write all the tokens that are asked for: its name and value, and a word on it.

    Raises:
        RunError: the server refuses the request with and without such a field.
    """
    num_tokens = body["max_tokens"]
    for extra in ({"ignore_eos": True}, {"min_tokens": num_tokens}, {}):
        sample = await client.ask({**body, **extra})
        if sample.error not in ("400", "422"):
            break
    if sample.error:
        raise RunError(f"bench serve: {client.url} answers {sample.error}: {sample.detail}")
    name = next(iter(extra), "")
    if sample.num_tokens >= num_tokens:
        return dict(extra), name
    return dict(extra), f"a reply of {sample.num_tokens} tokens although {name or 'nothing'} asks for {num_tokens}"
