"""LocalEngine: one LocalCore in a worker thread, behind the async engine protocol.

Requests wait in a bounded queue. The worker takes the oldest together with others that fit its batch, decodes them to
the end and takes the next ones.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.reply import Job
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
        core: its `served` names are the engine's.
        cards: what `models()` lists, the one that chat takes first.
        max_queue: requests that may wait; one more raises EngineBusy.
    """

    def __init__(self, core: LocalCore, cards: Sequence[ModelCard], *, max_queue: int = 64):
        self.core, self.max_queue = core, max_queue
        self._cards = {card.id: card for card in cards}
        self._changed = threading.Condition()
        self._admitted = 0  # requests between arrival and the worker
        self._waiting: list[Ticket] = []
        self._running: list[Ticket] = []
        self._tasks: list[Callable[[], None]] = []
        self._state = "not started"
        self._thread: threading.Thread | None = None
        self._batch_s = 1.0  # how long the last batch took
        self._prompt_tokens = self._completion_tokens = 0
        self._adapter_names = (f"served_{number}" for number in itertools.count())  # PEFT's own allow no dots

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> LocalEngine:
        """Load the recipe's model with its adapters, and those of `adapters`. Takes as long as loading does.

        Raises:
            RecipeError: what cannot be loaded; two models of one name.
        """
        from llmforge.model.loading import load_model

        loaded = load_model(recipe, for_training=False)
        core = LocalCore(
            loaded.model, loaded.tokenizer, loaded.template, served={}, skip_special=recipe.generate.skip_special_tokens
        )
        engine = cls(core, [], max_queue=recipe.serve.max_queue)
        base = short_name(recipe.model.model_name_or_path or str(loaded.folder))
        own = recipe.model.adapter_name_or_path[-1:]
        if own:
            engine._add(recipe.serve.served_model_name or short_name(own[0]), base, loaded.model.active_adapter, own[0])
        engine._add(base if own else recipe.serve.served_model_name or base, base, "", None)
        for name, path in recipe.serve.adapters.items():
            engine._attach(name, str(path))
        return engine

    async def start(self) -> None:
        """Start the worker."""
        self._state = "ready"
        self._thread = threading.Thread(target=self._work, name="llmforge-engine", daemon=True)
        self._thread.start()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the others go on for `drain_s` seconds, then cancel them."""
        if self._thread is None:
            return
        self._state = "draining"
        ends_at = time.monotonic() + drain_s
        while time.monotonic() < ends_at and (self._admitted or self._running):
            await asyncio.sleep(DRAIN_POLL_S)
        with self._changed:
            self._state = "stopped"
            for ticket in self._waiting:
                ticket.put(EngineUnavailable("the engine was stopped"))
            for ticket in (*self._waiting, *self._running):
                ticket.job.cancelled = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join)
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

    async def embed(self, model: str, texts: list[str], pooling: str) -> Embeddings:
        raise RequestError("the local engine makes no embeddings yet")

    async def score(self, model: str, conversations: list[Conversation]) -> Scores:
        raise RequestError("the local engine gives no reward scores yet")

    async def load_adapter(self, name: str, path: str) -> None:
        """Serve one more adapter.

        Raises:
            RecipeError: the name is taken, or the adapter does not fit the base.
        """
        await self._in_worker(lambda: self._attach(name, path))

    async def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer; requests for it that wait are refused."""
        await self._in_worker(lambda: self._detach(name))

    def models(self) -> list[ModelCard]:
        return list(self._cards.values())

    def capabilities(self) -> Capabilities:
        return self.core.capabilities()

    def stats(self) -> EngineStats:
        alive = self._thread is not None and self._thread.is_alive()
        return EngineStats(
            len(self._running),
            self._admitted,
            self._prompt_tokens,
            self._completion_tokens,
            alive and self._state == "ready",
        )

    # --- on the event loop ---

    def _admit(self) -> None:
        with self._changed:
            if self._state != "ready" or self._thread is None or not self._thread.is_alive():
                raise EngineUnavailable(f"the engine is {self._state if self._state != 'ready' else 'dead'}")
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

    def _add(self, name: str, base: str, adapter: str, path: str | None) -> None:
        if name in self._cards:
            raise RecipeError(f"two served models are called {name!r}; set served_model_name or rename one of adapters")
        assert self.core.served is not None
        self.core.served[name] = adapter
        self._cards[name] = ModelCard(name, base, path, self.core.context_length or 0)

    def _attach(self, name: str, path: str) -> None:
        from llmforge.model.adapters import attach_adapter

        if name in self._cards:
            raise RecipeError(f"adapters: a model called {name!r} is served already")
        inner = next(self._adapter_names)
        self.core.model = attach_adapter(self.core.model, Path(path), inner)
        self._add(name, next((card.base for card in self._cards.values()), name), inner, path)

    def _detach(self, name: str) -> None:
        card = self._cards.get(name)
        if card is None or card.adapter is None or self.core.served is None:
            raise UnknownModel(name, [card.id for card in self._cards.values() if card.adapter])
        inner = self.core.served.pop(name)
        del self._cards[name]
        with self._changed:
            for ticket in [ticket for ticket in self._waiting if ticket.job.adapter == inner]:
                self._waiting.remove(ticket)
                self._admitted -= 1
                ticket.put(UnknownModel(name, list(self._cards)))
        self.core.model.delete_adapter(inner)


def short_name(path: str) -> str:
    """What a model or adapter is called unless the recipe says: the last part of its path or id, without .gguf."""
    return Path(path.rstrip("/")).name.removesuffix(".gguf") or path
