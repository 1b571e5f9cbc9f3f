"""LocalEngine: one LocalCore in a worker thread, behind the async engine protocol.

Requests wait in a bounded queue. The worker takes the oldest together with others that fit its batch, decodes them to
the end and takes the next ones.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from llmforge.config.schema import Recipe
from llmforge.infer.local.raw import conversation_ids, raw_ids
from llmforge.infer.local.reply import Job
from llmforge.infer.local.served import ServedModels
from llmforge.infer.protocol import (
    Capabilities,
    Conversation,
    Embeddings,
    EngineBusy,
    EngineFailure,
    EngineStats,
    EngineUnavailable,
    GenerateRequest,
    ModelCard,
    Piece,
    RequestError,
    Scores,
    TokenIds,
    UnknownModel,
)

log = logging.getLogger(__name__)
DRAIN_POLL_S = 0.02


class Ticket:
    """A request on its way between the event loop that waits for it and the worker that runs it."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop):
        self.job, self.loop = job, loop
        self.items: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.has_pieces = False

    def put(self, item: Piece | Exception) -> None:
        """Hand a piece or a failure over, from the worker."""
        self.has_pieces = True
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.job.cancelled = True


class LocalEngine:
    """A model of this process behind the engine protocol.

    Args:
        served: the core and the names it answers to.
        max_queue: requests that may wait; one more raises EngineBusy.
    """

    def __init__(self, served: ServedModels, *, max_queue: int = 64):
        self.served, self.core, self.max_queue = served, served.core, max_queue
        self._changed = threading.Condition()
        self._admitted = 0  # requests between arrival and the worker
        self._waiting: list[Ticket] = []
        self._running: list[Ticket] = []
        self._tasks: list[Callable[[], None]] = []
        self._state = "not started"
        self._thread: threading.Thread | None = None
        self._batch_s = 1.0  # how long the last batch took
        self._prompt_tokens = self._completion_tokens = 0

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> LocalEngine:
        """Load the recipe's model with its adapters, and those of `adapters`. Takes as long as loading does.

        Raises:
            RecipeError: what cannot be loaded; two models of one name.
        """
        return cls(ServedModels.from_recipe(recipe), max_queue=recipe.serve.max_queue)

    async def start(self) -> None:
        """Start the worker."""
        self._state = "ready"
        self._thread = threading.Thread(target=self._live, name="llmforge-engine", daemon=True)
        self._thread.start()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the others go on for `drain_s` seconds, then cancel them. May be called twice."""
        thread = self._thread  # a second caller may end the wait of the first
        if thread is None:
            return
        self._state = "draining"
        ends_at = time.monotonic() + drain_s
        while time.monotonic() < ends_at and (self._admitted or self._running):
            await asyncio.sleep(DRAIN_POLL_S)
        with self._changed:
            self._state = "stopped"
            for ticket in (*self._waiting, *self._running):
                ticket.put(EngineUnavailable("the engine was stopped"))  # before its last piece, so that it is the end
                ticket.job.cancelled = True
            self._changed.notify_all()
        await asyncio.to_thread(thread.join)
        self._thread = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """See Engine. A request whose deadline passes while it waits raises EngineUnavailable."""
        arrived_at = time.monotonic()
        self._admit()
        ticket = None
        try:
            job = await asyncio.to_thread(self.core.prepare, request, arrived_at)
            ticket = Ticket(job, asyncio.get_running_loop())
            with self._changed:
                self._waiting.append(ticket)
                self._changed.notify_all()
            item = await self._first(ticket)
            remaining = job.num_rows
            while True:
                if isinstance(item, Exception):
                    raise item
                if item.finish_reason == "error":
                    raise EngineFailure(item.error or "the request failed")
                yield item
                remaining -= item.finish_reason is not None
                if not remaining:
                    return
                item = await ticket.items.get()
        finally:
            self._leave(ticket)

    async def embed(
        self, model: str, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None
    ) -> Embeddings:
        raise RequestError("the local engine makes no embeddings yet")

    async def score(self, model: str, conversations: Sequence[Conversation | TokenIds]) -> Scores:
        raise RequestError("the local engine gives no reward scores yet")

    async def tokenize(self, model: str, prompt: Conversation | str) -> list[int]:
        """See Engine.

        Raises:
            RequestError: the model is not served, or the messages do not fit the template.
        """
        if model not in self.served.table:
            raise UnknownModel(model, list(self.served.table))
        if isinstance(prompt, str):
            return await asyncio.to_thread(raw_ids, self.core.tokenizer, prompt)
        return await asyncio.to_thread(conversation_ids, self.core.template, self.core.tokenizer, prompt)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """See Engine.

        Raises:
            RequestError: the model is not served, or an id is outside its vocabulary.
        """
        if model not in self.served.table:
            raise UnknownModel(model, list(self.served.table))
        if strange := [id for id in ids if not 0 <= id < len(self.core.tokenizer)]:
            raise RequestError(f"tokens: no such ids: {strange[:5]}", param="tokens")
        return await asyncio.to_thread(self.core.tokenizer.decode, ids)

    async def load_adapter(self, name: str, path: str) -> None:
        """Serve one more adapter.

        Raises:
            RecipeError: the name is taken, or the adapter does not fit the base.
        """
        await self._in_worker(lambda: self.served.attach(name, path))

    async def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer; requests for it that wait are refused."""
        await self._in_worker(lambda: self._detach(name))

    def models(self) -> list[ModelCard]:
        return self.served.cards

    def capabilities(self) -> Capabilities:
        return self.core.capabilities()

    def stats(self) -> EngineStats:
        return EngineStats(
            len(self._running),
            self._admitted,
            self._prompt_tokens,
            self._completion_tokens,
            self._state == "ready",
        )

    # --- on the event loop ---

    def _admit(self) -> None:
        with self._changed:
            if self._state != "ready":
                raise EngineUnavailable(f"the engine is {self._state}")
            if self._admitted >= self.max_queue + (not self._running):  # an idle engine's next request does not wait
                raise EngineBusy(f"{self._admitted} requests wait already", max(1.0, self._batch_s))
            self._admitted += 1

    async def _first(self, ticket: Ticket) -> Piece | Exception:
        """The first item; a waiting request gives up at its deadline, a running one ends itself with "timeout"."""
        if ticket.job.deadline_at is not None:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(ticket.items.get(), max(0.0, ticket.job.deadline_at - time.monotonic()))
            if ticket in self._waiting:
                raise EngineUnavailable(f"no room within {ticket.job.request.deadline_s:g} s; the queue is too long")
        return await ticket.items.get()

    def _leave(self, ticket: Ticket | None) -> None:
        """The request is over or given up: out of the queue, or cancelled at the next step."""
        with self._changed:
            if ticket is None:  # never reached the queue
                self._admitted -= 1
                return
            ticket.job.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._admitted -= 1

    async def _in_worker(self, task: Callable[[], None]) -> None:
        """Run a change of the model between two batches."""
        if self._state != "ready":
            raise EngineUnavailable(f"the engine is {self._state}")
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                task()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        with self._changed:
            self._tasks.append(run)
            self._changed.notify_all()
        await asyncio.wrap_future(done)

    # --- in the worker ---

    def _live(self) -> None:
        """Work until stopped; when that fails itself, nobody is left waiting."""
        try:
            self._work()
        except BaseException:
            log.exception("the engine died")
            with self._changed:
                self._state = "dead"
                tickets, self._waiting, self._running = [*self._waiting, *self._running], [], []
            for ticket in tickets:
                ticket.put(EngineUnavailable("the engine died; the server's log has the details"))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._waiting or self._state == "stopped")
                if self._state == "stopped" and not self._tasks:
                    return
                tasks, self._tasks = self._tasks, []
                self._running = [] if tasks else self._take()
            for task in tasks:
                task()
            if self._running:
                started = time.monotonic()
                self._run(self._running)
                self._batch_s = time.monotonic() - started
            with self._changed:
                self._running = []

    def _take(self) -> list[Ticket]:
        """The first in the queue and all that may run with it, highest priority first, then by arrival."""
        order = sorted(self._waiting, key=lambda ticket: -ticket.job.request.priority)
        batch = order[:1]
        for ticket in order[1:]:
            if self.core.fits([other.job for other in batch], ticket.job):
                batch.append(ticket)
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        self._admitted -= len(batch)
        return batch

    def _run(self, batch: list[Ticket]) -> None:
        """Decode a batch. What fails in company before its first piece is tried alone, so that it fails alone."""
        try:
            for number, piece in self.core.run([ticket.job for ticket in batch]):
                if piece.usage:
                    self._prompt_tokens += piece.usage.prompt_tokens
                    self._completion_tokens += piece.usage.completion_tokens
                batch[number].put(piece)
        except Exception as error:
            log.exception("a batch of %d requests failed", len(batch))
            untouched = [ticket for ticket in batch if not ticket.has_pieces]
            again = untouched if len(batch) > 1 else []
            for ticket in batch:
                if ticket not in again:
                    ticket.put(EngineFailure(f"the engine failed on this request: {type(error).__name__}"))
            for ticket in again:
                self._run([ticket])

    def _detach(self, name: str) -> None:
        inner = self.served.detach(name)
        with self._changed:
            for ticket in [ticket for ticket in self._waiting if ticket.job.adapter == inner]:
                self._waiting.remove(ticket)
                self._admitted -= 1
                ticket.put(UnknownModel(name, list(self.served.table)))
