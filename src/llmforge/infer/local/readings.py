"""Texts to be embedded or scored, on their way to the workers: all requests' gathered into small calls. No torch.

A call runs between two steps of a worker and holds about as many tokens as a step does, so that replies being written
go on; and each worker has one call at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmforge.infer.protocol import Conversation, TokenIds

CALL_BYTES = 2048  # of text in a call: about 500 tokens, a second of a CPU's core for a small model


@dataclass(frozen=True)
class Reading:
    """What reading one text gave: a vector, or the value at each token; or why it could not be read."""

    values: Sequence[float]
    num_tokens: int
    error: str | None = None


@dataclass
class _Item:
    kind: tuple[Any, ...]  # method, model and options: what items of one call share
    text: Any
    size: int
    done: asyncio.Future[Reading] = field(repr=False)


class Readings:
    """Gathers texts into calls.

    Args:
        call: runs a method of a worker's ServedModels: (method, model, texts, *options) -> one Reading per text.
        num_calls: how many calls may run at once.
    """

    def __init__(self, call: Callable[..., Awaitable[list[Reading]]], num_calls: Callable[[], int]):
        self.call, self.num_calls = call, num_calls
        self._items: list[_Item] = []
        self._running: set[asyncio.Task[None]] = set()

    async def read(self, method: str, model: str, texts: Sequence[Any], *options: Any) -> list[Reading]:
        """A Reading for each text, in their order. What a whole call fails with is raised."""
        loop = asyncio.get_running_loop()
        items = [_Item((method, model, *options), text, size_of(text), loop.create_future()) for text in texts]
        self._items += items
        self._start()
        try:
            return list(await asyncio.gather(*(item.done for item in items)))
        finally:  # also when the asker has gone
            for item in items:
                item.done.cancel()
                if item in self._items:
                    self._items.remove(item)

    def _start(self) -> None:
        while self._items and len(self._running) < self.num_calls():
            kind = self._items[0].kind
            alike = sorted((item for item in self._items if item.kind == kind), key=lambda item: item.size)
            first = alike.index(self._items[0])  # the oldest is always among them, with others of its length
            taken, size = [alike[first]], alike[first].size
            for item in [*alike[first + 1 :], *reversed(alike[:first])]:
                if size + item.size > CALL_BYTES:
                    break
                taken.append(item)
                size += item.size
            self._items = [item for item in self._items if item not in taken]
            task = asyncio.create_task(self._run(kind, taken))
            self._running.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, kind: tuple[Any, ...], items: Sequence[_Item]) -> None:
        method, model, *options = kind
        try:
            readings = await self.call(method, model, [item.text for item in items], *options)
        except Exception as error:
            for item in items:
                if not item.done.done():
                    item.done.set_exception(error)
        else:
            for item, reading in zip(items, readings, strict=True):
                if not item.done.done():
                    item.done.set_result(reading)


def size_of(text: str | TokenIds | Conversation) -> int:
    """Bytes of a text, as its work is guessed; a token counts as four."""
    if isinstance(text, TokenIds):
        return 4 * len(text.ids)
    if isinstance(text, Conversation):
        return sum(len(message.content.encode()) for message in text.messages)
    return len(text.encode())
