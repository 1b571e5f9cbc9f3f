"""The line before the engine: bounded, fair between clients, left after a while."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from llmforge.infer.protocol import EngineBusy, EngineUnavailable

ACTIVE_S = 10.0  # a client is thought of for so long after its last request
SHARE = 2  # a client may take one of so many places while others are active
AHEAD = 4  # one of so many places more is given to the engine, so that it never waits for the line
LOOK_AGAIN_S = 0.25  # while the line is held
LEARN = 0.2  # weight of the newest request in the mean time of one


@dataclass(eq=False)
class Waiter:
    """A request in line."""

    client: str
    rows: int
    number: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Line:
    """Lets requests through to the engine while it has room for their replies.

    A free place goes to the client with the fewest replies under way, among equals to the one served longest ago, and
    among its requests to the first. A client alone has the whole engine. While others are active it has half of the
    places, so that somebody's hundred long requests neither keep others out nor make each step slow. When the line is
    full, a newcomer takes the place of the last request of the client with most in it.

    Args:
        max_running: replies the engine decodes together.
        max_waiting: requests in line; one more is refused with EngineBusy.
        held: whether nobody goes through now.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        *,
        held: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_running, self.max_waiting, self.held, self.clock = max_running, max_waiting, held, clock
        self.is_closed = False
        self._waiting: list[Waiter] = []
        self._running: Counter[str] = Counter()  # replies by client
        self._requests = 0
        self._seen: dict[str, float] = {}  # when each active client asked, and when it was served
        self._served: dict[str, int] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._mean_s = 1.0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are through."""
        return self._requests

    @asynccontextmanager
    async def place(self, client: str, rows: int, timeout_s: float) -> AsyncIterator[float]:
        """A place for `rows` replies; gives the seconds it was waited for.

        Raises:
            EngineBusy: the line is full.
            EngineUnavailable: no place within `timeout_s`, or the server is stopping.
        """
        arrived_at = self.clock()
        await self._wait(client, rows, timeout_s)
        started_at = self.clock()
        try:
            yield started_at - arrived_at
        finally:
            self._mean_s += LEARN * (self.clock() - started_at - self._mean_s)
            self._release(client, rows)

    async def _wait(self, client: str, rows: int, timeout_s: float) -> None:
        if self.is_closed:
            raise EngineUnavailable("the server is stopping")
        self._seen[client] = self.clock()
        waiter = Waiter(client, rows, next(self._numbers))
        self._waiting.append(waiter)
        self._advance()
        if not waiter.turn.done() and len(self._waiting) > self.max_waiting:
            self._turn_away(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.turn
        except BaseException as error:
            self._leave(waiter)
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(f"no place within {timeout_s:g} s; the queue is too long") from None
            raise

    def _leave(self, waiter: Waiter) -> None:
        """Give up, in line or in the very moment in which the place was given."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif not waiter.turn.cancelled() and waiter.turn.exception() is None:
            self._release(waiter.client, waiter.rows)

    def _release(self, client: str, rows: int) -> None:
        self._requests -= 1
        self._running[client] -= rows
        if not self._running[client]:
            del self._running[client]
        self._advance()

    def _turn_away(self, newcomer: Waiter) -> None:
        """Refuse the newcomer, or the last request of another client that has more of them in line."""
        counts = Counter(waiter.client for waiter in self._waiting)
        greedy, most = counts.most_common(1)[0]
        out = newcomer
        if most > counts[newcomer.client]:
            out = [waiter for waiter in self._waiting if waiter.client == greedy][-1]
        self._waiting.remove(out)
        wait_s = max(1.0, self._mean_s * len(self._waiting) / self.max_running)
        out.turn.set_exception(EngineBusy(f"{len(self._waiting)} requests wait already", wait_s))

    def _advance(self) -> None:
        """Let through who may go."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.turn.done()]  # those that were cancelled
        while self._waiting:
            if self.held():
                self._look_again()
                return
            waiter = min(self._waiting, key=self._rank)
            if not self._has_room(waiter):
                # Whoever has fewest under way goes next; nobody slips past, or wide requests would wait for ever.
                return
            self._waiting.remove(waiter)
            self._requests += 1
            self._running[waiter.client] += waiter.rows
            self._served[waiter.client] = next(self._numbers)
            waiter.turn.set_result(None)

    def _rank(self, waiter: Waiter) -> tuple[int, int, int]:
        """Fewest replies under way, then longest ago served, then first come."""
        return self._running[waiter.client], self._served.get(waiter.client, -1), waiter.number

    def _has_room(self, waiter: Waiter) -> bool:
        total = sum(self._running.values())
        if not total:
            return True
        most = self.max_running + self.max_running // AHEAD
        own = self.max_running // SHARE if self._has_company(waiter.client) else most
        return total + waiter.rows <= most and (
            self._running[waiter.client] + waiter.rows <= own or not self._running[waiter.client]
        )

    def _has_company(self, client: str) -> bool:
        """Whether another client asked in the last seconds."""
        now = self.clock()
        self._seen = {name: at for name, at in self._seen.items() if now - at < ACTIVE_S or self._running[name]}
        self._served = {name: number for name, number in self._served.items() if name in self._seen}
        return any(name != client for name in self._seen)

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._advance()

    async def drain(self, timeout_s: float, forced: Callable[[], bool] = lambda: False) -> None:
        """Take nobody in any more and wait until everybody is through and done, or the time is over."""
        self.is_closed = True
        ends_at = time.monotonic() + timeout_s
        while (self._requests or self._waiting) and time.monotonic() < ends_at and not forced():
            await asyncio.sleep(0.02)
        for waiter in [waiter for waiter in self._waiting if not waiter.turn.done()]:
            waiter.turn.set_exception(EngineUnavailable("the server is stopping"))
        self._waiting = []
