"""LocalEngine: workers with a core each behind the async engine protocol, and one line of requests before them.

A request waits here until a worker has room, the most important and oldest first. The first few go to one worker, which
has the cores of the others then. A further one goes to the worker that has the least left to compute with it: one that
knows its prefix is preferred until it is busier than the others by more than that prefix is worth.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.infer.local.fleet import Fleet, ThreadFleet, Worker
from llmforge.infer.local.messages import Answer, Begin, Call, Came, Cancel, Died, Refused
from llmforge.infer.local.posts import Post, Ticket
from llmforge.infer.local.raw import conversation_ids, judged_ids, raw_ids
from llmforge.infer.local.readings import Readings
from llmforge.infer.local.reply import Job
from llmforge.infer.protocol import (
    POOLINGS,
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
SUMMED = (  # of the workers' counts
    "blocks",
    "blocks_used",
    "blocks_cached",
    "looked_up_tokens",
    "found_tokens",
    "preempted",
    "drafted_tokens",
    "kept_tokens",
    "steps",
)


class LocalEngine:
    """Models of this machine behind the engine protocol.

    Args:
        served: a core of this process with its names, or a fleet of workers.
        max_queue: requests that may wait; one more raises EngineBusy.
    """

    def __init__(self, served: Any, *, max_queue: int = 64):
        fleet: Any = served if isinstance(served, Fleet) else ThreadFleet(served)
        self.fleet: Fleet = fleet
        self.max_queue = max_queue
        self._state = "not started"
        self._numbers = itertools.count()
        self._admitted = 0  # requests between arrival and a worker
        self._waiting: list[Ticket] = []
        self._posts: list[Post] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._changing = asyncio.Lock()  # adapters come and go one after the other
        self._readings = Readings(self.call, lambda: len(self._alive()))
        self._reply_s = 1.0  # how long the last request took
        self._prompt_tokens = self._completion_tokens = self._died = 0

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> LocalEngine:
        """Load the recipe's model with its adapters, and those of `adapters`. Takes as long as loading does.

        Raises:
            RecipeError: what cannot be loaded; two models of one name.
        """
        from llmforge.infer.local.process_fleet import ProcessFleet

        return cls(ProcessFleet(recipe), max_queue=recipe.serve.max_queue)

    async def start(self) -> None:
        """Start the workers."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.fleet.prepare)
        self._posts = [self._post(loop, number, worker) for number, worker in enumerate(self.fleet.workers)]
        self._state = "ready"

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the others go on for `drain_s` seconds, then cancel them. May be called twice."""
        if self._state in ("not started", "stopped"):
            return
        if self._state == "ready":
            self._state = "draining"
        ends_at = time.monotonic() + drain_s
        while time.monotonic() < ends_at and (self._admitted or any(post.tickets for post in self._posts)):
            await asyncio.sleep(DRAIN_POLL_S)
        if self._state == "stopped":  # a second caller ended the wait
            return
        self._state = "stopped"
        for ticket in [*self._waiting, *(ticket for post in self._posts for ticket in post.tickets.values())]:
            ticket.items.put_nowait(EngineUnavailable("the engine was stopped"))
        for future in self._answers.values():
            if not future.done():
                future.set_exception(EngineUnavailable("the engine was stopped"))
        await asyncio.to_thread(self.fleet.stop)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """See Engine. A request whose deadline passes while it waits raises EngineUnavailable."""
        arrived_at = time.monotonic()
        self._admit()
        ticket = None
        try:
            job = await asyncio.to_thread(self.fleet.intake.prepare, request, arrived_at)
            if self._state in ("stopped", "dead"):  # meanwhile: nobody would ever take it out of the line
                raise EngineUnavailable(f"the engine {'was stopped' if self._state == 'stopped' else 'is dead'}")
            ticket = Ticket(next(self._numbers), job)
            self._waiting.append(ticket)
            self._dispatch()
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
                    self._reply_s = time.monotonic() - arrived_at
                    return
                item = await ticket.items.get()
        finally:
            self._leave(ticket)

    async def embed(
        self, model: str, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None
    ) -> Embeddings:
        """See Engine.

        Raises:
            RequestError: a text that is empty or too long, a pooling that is not known.
        """
        self._check_task(model, "embed")
        if pooling not in ("", *POOLINGS):
            raise RequestError(f"pooling: got {pooling!r}, expected one of {', '.join(POOLINGS)}", param="pooling")
        readings = await self._readings.read("embed", model, texts, pooling, max_tokens)
        for number, reading in enumerate(readings):
            if reading.error is not None:
                raise RequestError(f"input.{number}: {reading.error}", param=f"input.{number}")
        return Embeddings([reading.values for reading in readings], sum(reading.num_tokens for reading in readings))

    async def score(self, model: str, conversations: Sequence[Conversation | TokenIds]) -> Scores:
        """See Engine.

        Raises:
            RequestError: a conversation without a reply at its end, or one that the template cannot write.
        """
        self._check_task(model, "score")
        intake = self.fleet.intake

        def encode() -> list[TokenIds]:
            rows = [judged_ids(intake.template, intake.tokenizer, conversation) for conversation in conversations]
            return [TokenIds(tuple(row)) for row in rows]

        readings = await self._readings.read("score", model, await asyncio.to_thread(encode))
        return Scores(
            [reading.values[-1] if reading.values else None for reading in readings],
            sum(reading.num_tokens for reading in readings),
            [reading.values for reading in readings],
            [reading.error for reading in readings],
        )

    async def tokenize(self, model: str, prompt: Conversation | str) -> list[int]:
        """See Engine.

        Raises:
            RequestError: the model is not served, or the messages do not fit the template.
        """
        self._check_name(model)
        intake = self.fleet.intake
        if isinstance(prompt, str):
            return await asyncio.to_thread(raw_ids, intake.tokenizer, prompt)
        return await asyncio.to_thread(conversation_ids, intake.template, intake.tokenizer, prompt)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """See Engine.

        Raises:
            RequestError: the model is not served, or an id is outside its vocabulary.
        """
        self._check_name(model)
        tokenizer = self.fleet.intake.tokenizer
        if strange := [id for id in ids if not 0 <= id < len(tokenizer)]:
            raise RequestError(f"tokens: no such ids: {strange[:5]}", param="tokens")
        return await asyncio.to_thread(tokenizer.decode, ids)

    async def load_adapter(self, name: str, path: str) -> None:
        """Serve one more adapter; requests go on meanwhile.

        Raises:
            RecipeError: the name is taken, or the adapter does not fit the base.
        """
        async with self._changing:
            await asyncio.to_thread(self.fleet.remember, "attach", name, path)
            inner, card = (await self.call_all("attach", name, path))[0]
            if "generate" in card.tasks:
                self._served[name] = inner
            self.fleet.cards[name] = card

    async def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer: requests for it that wait are refused, those that run come to their end.

        Raises:
            UnknownModel: no adapter of that name.
        """
        async with self._changing:
            card = self.fleet.cards.get(name)
            if card is None or card.adapter is None:
                raise UnknownModel(name, [card.id for card in self.models() if card.adapter])
            inner = self._served.pop(name, None)  # None: a reward model
            del self.fleet.cards[name]
            for ticket in [ticket for ticket in self._waiting if ticket.job.adapter == inner]:
                ticket.items.put_nowait(UnknownModel(name, list(self._served)))
                self._take_out(ticket)
            while any(t.job.adapter == inner for post in self._posts for t in post.tickets.values()):
                await asyncio.sleep(DRAIN_POLL_S)
            await asyncio.to_thread(self.fleet.remember, "detach", name)
            await self.call_all("detach", name)

    def models(self) -> list[ModelCard]:
        return list(self.fleet.cards.values())

    def capabilities(self) -> Capabilities:
        return self.fleet.capabilities

    def stats(self) -> EngineStats:
        cores = [post.stats for post in self._posts if post.is_alive and post.stats is not None]
        return EngineStats(
            sum(len(post.tickets) for post in self._posts),
            self._admitted,
            self._prompt_tokens,
            self._completion_tokens,
            self._state == "ready",
            workers=sum(post.is_alive for post in self._posts),
            workers_died=self._died,
            **{name: sum(getattr(core, name) for core in cores) for name in SUMMED},
        )

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of one worker's ServedModels between two steps; the worker with the least to do.

        Raises:
            EngineUnavailable: no worker is there; or what the method raises.
        """
        return await self._call(min(self._alive(), key=lambda post: post.num_rows), method, args)

    async def call_all(self, method: str, *args: Any) -> list[Any]:
        """The same of every worker."""
        return await asyncio.gather(*(self._call(post, method, args) for post in self._alive()))

    # --- on the event loop ---

    def _post(self, loop: asyncio.AbstractEventLoop, number: int, worker: Worker) -> Post:
        post = Post(number, worker)
        worker.start(lambda message: self._pass(loop, post, message))
        return post

    def _alive(self) -> list[Post]:
        alive = [post for post in self._posts if post.is_alive]
        if self._state != "ready" or not alive:
            raise EngineUnavailable(f"the engine is {self._state}")
        return alive

    @property
    def _served(self) -> dict[str, str]:
        """Names of models that write, and their adapters inside the model."""
        served = self.fleet.intake.served
        assert served is not None  # a fleet's intake always has names
        return served

    def _check_name(self, model: str) -> None:
        if model not in self._served:
            raise UnknownModel(model, list(self._served))

    def _check_task(self, model: str, task: str) -> None:
        known = [card for card in self.models() if task in card.tasks]
        if model not in [card.id for card in known]:
            raise UnknownModel(model, [card.id for card in known])

    async def _call(self, post: Post, method: str, args: tuple[Any, ...]) -> Any:
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            post.worker.send(Call(number, method, args))
            return await future
        finally:
            del self._answers[number]

    def _admit(self) -> None:
        if self._state != "ready":
            raise EngineUnavailable(f"the engine is {self._state}")
        is_idle = not any(post.tickets for post in self._posts)
        if self._admitted >= self.max_queue + is_idle:  # an idle engine's next request does not wait
            raise EngineBusy(f"{self._admitted} requests wait already", max(1.0, self._reply_s))
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
        """The request is over or given up: out of the line, or cancelled at its worker's next step."""
        if ticket is None:  # it never stood in the line
            self._admitted -= 1
        elif ticket in self._waiting:
            self._take_out(ticket)
        elif ticket.post is not None and ticket.number in ticket.post.tickets:
            ticket.post.worker.send(Cancel(ticket.number))

    def _take_out(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        self._admitted -= 1

    def _dispatch(self) -> None:
        """Give waiting requests to workers with room."""
        self._waiting.sort(key=lambda ticket: (-ticket.job.request.priority, ticket.number))
        for ticket in list(self._waiting):
            posts = [post for post in self._posts if post.has_room(ticket.job)]
            if not posts:
                return
            post = self._best(posts, ticket.job)
            ticket.post, ticket.work = post, post.cost(ticket.job)[1]
            post.tickets[ticket.number] = ticket
            post.prefixes.add(ticket.job.adapter, ticket.job.prompt_ids)
            self._take_out(ticket)
            post.worker.send(Begin(ticket.number, ticket.job))

    def _best(self, posts: Sequence[Post], job: Job) -> Post:
        few = [post for post in posts if post.tickets and post.num_rows + job.num_rows <= self.fleet.together]
        if few:
            return max(few, key=lambda post: post.num_rows)
        return min(posts, key=lambda post: (post.cost(job)[0], post.number))

    def _pass(self, loop: asyncio.AbstractEventLoop, post: Post, message: Any) -> None:
        """A message from a worker, in its thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._hear, post, message)

    def _hear(self, post: Post, message: Came | Refused | Answer | Died) -> None:
        match message:
            case Came(pieces, stats):
                post.stats = stats
                for number, piece in pieces:
                    self._deliver(post, number, piece)
            case Refused(number, problem):
                self._end(post, number, problem.as_error())
            case Answer(number, value, problem):
                future = self._answers.get(number)
                if future is not None and not future.done():
                    future.set_exception(problem.as_error()) if problem is not None else future.set_result(value)
            case Died(reason):
                self._lose(post, reason)
        self._dispatch()

    def _deliver(self, post: Post, number: int, piece: Piece) -> None:
        ticket = post.tickets.get(number)
        if ticket is None:
            return
        ticket.has_pieces = True
        ticket.items.put_nowait(piece)
        if piece.usage is not None:
            self._prompt_tokens += piece.usage.prompt_tokens
            self._completion_tokens += piece.usage.completion_tokens
            del post.tickets[number]

    def _end(self, post: Post, number: int, error: Exception) -> None:
        if (ticket := post.tickets.pop(number, None)) is not None:
            ticket.items.put_nowait(error)

    def _lose(self, post: Post, reason: str) -> None:
        """A worker died: what it had not begun to answer is given to others, the rest fails."""
        post.is_alive = False
        self._died += 1
        lost, post.tickets = list(post.tickets.values()), {}
        if self._state in ("ready", "draining") and (worker := self.fleet.revive(post.number)) is not None:
            log.warning("engine worker %d died (%s); a new one takes its place", post.number, reason)
            self._posts[post.number] = self._post(asyncio.get_running_loop(), post.number, worker)
        has_others = any(other.is_alive for other in self._posts)
        if not has_others and self._state == "ready":
            self._state = "dead"
        for ticket in lost:
            if has_others and not ticket.has_pieces:
                ticket.post = None
                self._waiting.append(ticket)
                self._admitted += 1
            else:
                ticket.items.put_nowait(
                    EngineUnavailable(f"the engine died; the server's log has the details ({reason})")
                )
        if not has_others:
            for ticket in list(self._waiting):
                self._take_out(ticket)
                ticket.items.put_nowait(EngineUnavailable("the engine died; the server's log has the details"))
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(EngineUnavailable("the engine died"))
