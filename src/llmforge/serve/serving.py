"""What the routes share: the engine, the line before it, the switch, and one request's way through them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from llmforge.errors import ForgeError
from llmforge.infer.protocol import (
    Engine,
    EngineFailure,
    EngineUnavailable,
    GenerateRequest,
    ModelCard,
    Piece,
    RequestError,
    TokenIds,
    UnknownModel,
    Usage,
)
from llmforge.serve.degrade import RETRY_S, Switch
from llmforge.serve.errors import ApiError
from llmforge.serve.keys import Client
from llmforge.serve.line import Line
from llmforge.serve.metrics import Metrics
from llmforge.serve.record import Record
from llmforge.serve.settings import Settings
from llmforge.serve.stream import client_left

R = TypeVar("R")
CLIENT_LEFT = 499  # nobody reads it; the number is nginx's
TASKS = {"generate": "writes no replies", "embed": "makes no embeddings", "score": "gives no scores"}


@dataclass
class Serving:
    """One server's parts."""

    engine: Engine
    settings: Settings
    line: Line
    switch: Switch
    metrics: Metrics
    started: int
    is_stopping: bool = False

    @property
    def is_ready(self) -> bool:
        return self.engine.stats().ready and not self.is_stopping

    def names(self) -> dict[str, ModelCard]:
        """Every name a request may use."""
        cards = self.engine.models()
        found = {name: card for card in cards for name in (card.id, *card.aliases)}
        for alias, name in self.settings.model_aliases.items():
            if name in found:
                found.setdefault(alias, found[name])
        return found

    def card(self, name: str, task: str) -> ModelCard:
        """The model of that name.

        Raises:
            UnknownModel: no such name.
            ApiError: it is not made for the task.
        """
        names = self.names()
        if name not in names:
            if self.settings.strict_400:
                raise ApiError(400, str(UnknownModel(name, list(names))), param="model", code="model_not_found")
            raise UnknownModel(name, list(names))
        card = names[name]
        if task not in card.tasks:
            raise ApiError(400, f"model {name!r} {TASKS[task]}", param="model", code="wrong_task")
        return card

    def check_bytes(self, card: ModelCard, num_bytes: int, param: str) -> None:
        """Refuse a prompt that cannot fit before it is tokenised, which takes time in proportion to its length.

        Raises:
            ApiError: 400 with the least number of tokens it can have, and the context's.
        """
        if card.max_prompt_bytes and num_bytes > card.max_prompt_bytes:
            longest = card.max_prompt_bytes // card.context_length
            message = (
                f"the prompt has {num_bytes} bytes and so at least {-(-num_bytes // longest)} tokens; "
                f"the model's context is {card.context_length} tokens"
            )
            raise ApiError(400, message, param=param, code="context_length_exceeded")

    async def generate(self, request: Request, asked: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The pieces of a request, after its time in line.

        Raises:
            ForgeError, ApiError: before the first piece where it is refused, later where it fails.
        """
        record, client = record_of(request), client_of(request)
        if canned := self.degraded():
            if asked.constraint is not None:
                raise ApiError(503, canned, code="degraded", headers={"Retry-After": str(RETRY_S)})
            for index in range(asked.sampling.n):
                yield Piece(index, (), canned, finish_reason="stop", usage=Usage(0, 0))
            return
        arrived_at = time.monotonic()
        async with self.line.place(client.name, asked.sampling.n, self._patience_s()) as waited_s:
            record.queue_s = max(record.queue_s or 0.0, waited_s)
            deadline_s = self.settings.deadline_s
            if deadline_s is not None:
                deadline_s = max(0.001, deadline_s - (time.monotonic() - arrived_at))
            asked = dataclasses.replace(asked, deadline_s=deadline_s, request_id=record.id)
            try:
                async with aclosing(self.engine.generate(asked)) as pieces:
                    async for piece in pieces:
                        gap = record.see(piece)
                        if gap is not None and asked.streams:
                            self.metrics.between.observe(gap)
                        yield piece
            except Exception as error:
                record.error = type(error).__name__
                if isinstance(error, RequestError) and isinstance(asked.prompt, TokenIds) and error.param == "messages":
                    error.param = "prompt"
                if self._is_failure(error):
                    self.switch.note(False)
                raise
            self.switch.note(True)

    async def work(self, request: Request, doing: Coroutine[Any, Any, R]) -> R:
        """The result of one call of the engine that is no generation, after its time in line.

        Raises:
            ForgeError, ApiError: it is refused, it failed, or the client left, who gets none of this.
        """
        record, client = record_of(request), client_of(request)

        async def in_turn() -> tuple[R]:
            async with self.line.place(client.name, 1, self._patience_s()) as waited_s:
                record.queue_s = waited_s
                return (await doing,)

        try:
            if canned := self.degraded():
                raise ApiError(503, canned, code="degraded", headers={"Retry-After": str(RETRY_S)})
            result = await unless_client_leaves(request, in_turn())
            if result is None:
                raise ApiError(CLIENT_LEFT, "the client left", code="client_left")
            return result[0]
        finally:
            doing.close()  # without effect when it has run

    def degraded(self) -> str | None:
        """The canned text where that is what is answered now.

        Raises:
            ApiError: 503 where the service is hidden.
        """
        mode = self.switch.mode
        if mode == "hide":
            text = "the service is switched off for now"
            raise ApiError(503, text, code="degraded", headers={"Retry-After": str(RETRY_S)})
        return self.settings.degrade_text if mode == "canned" else None

    def _patience_s(self) -> float:
        return min(self.settings.queue_timeout_s, self.settings.deadline_s or float("inf"))

    def _is_failure(self, error: Exception) -> bool:
        """Whether the engine failed, and not the client or the queue."""
        if isinstance(error, EngineUnavailable):
            return not self.engine.stats().ready and not self.is_stopping
        return isinstance(error, EngineFailure) or not isinstance(error, ForgeError)


def get_serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


def record_of(request: Request) -> Record:
    record: Record = request.scope["state"]["record"]
    return record


def client_of(request: Request) -> Client:
    client: Client = request.scope["state"]["client"]
    return client


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, R]) -> R | None:
    """The result of `work`, or None when the client closed the connection before; `work` is cancelled then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(client_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def merged(
    streams: Sequence[AsyncGenerator[Piece, None]], at_once: int
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(number, piece) of several requests as they come, so many of them under way; the first failure ends all."""
    queue: asyncio.Queue[tuple[int, Piece] | BaseException | None] = asyncio.Queue(maxsize=4 * at_once)
    places = asyncio.Semaphore(at_once)

    async def follow(number: int) -> None:
        async with places, aclosing(streams[number]) as pieces:
            async for piece in pieces:
                await queue.put((number, piece))

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(streams)):
                    group.create_task(follow(number))
        except BaseExceptionGroup as errors:
            await queue.put(errors.exceptions[0])
        else:
            await queue.put(None)

    running = asyncio.ensure_future(run())
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        running.cancel()
        await asyncio.wait({running})
