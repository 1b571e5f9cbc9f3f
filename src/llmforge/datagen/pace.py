"""Pacing: how fast a server may be asked, learned from its answers.

Nothing is held back until the server says 429. From then on requests leave one by one, at the rate that it took just
before. While nothing is refused the rate grows with the cube of the time: hardly at first, so that a limit once found
is kept to, and fast later, so that a limit that is gone is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]

WINDOW_S = 1.0  # over which the accepted rate is measured at a refusal
START = 2  # requests under way at first to a server; one more for each that is answered
MARGIN = 0.97  # of the measured rate
BACK_OFF, HARD_BACK_OFF = 0.95, 0.85  # after a refusal, and after one soon after another
CREDIT = 0.1  # of an interval that a late request gives to the next one; more would put one too many into a second
SOON_S = 3.0
GROWTH = 0.03  # after one time scale; 0.24 after two, 0.81 after three
UNSURE_S, SURE_S, SUREST_S = 3.0, 20.0, 160.0  # time scales: of a guess, of a measured rate, of one often confirmed
ENOUGH = 3  # requests that make a rate measured
NEAR = 1.15  # a refusal below this multiple of the last rate confirms it


class Pacer:
    """Lets requests through, at most `parallel` at once.

    Args:
        start: requests under way at first.
        now, sleep: the clock; tests give their own.
    """

    def __init__(
        self, parallel: int, start: int = START, now: Callable[[], float] = time.monotonic, sleep: Sleep = asyncio.sleep
    ):
        self.parallel, self._now, self._sleep = parallel, now, sleep
        self._base: float | None = None  # requests per second after the last refusal; None while nothing was refused
        self._scale_s = SURE_S
        self.num_sent = self.num_refused = 0
        self._width = min(parallel, start)
        self._running = 0
        self._next_at = self._blocked_until = 0.0
        self._refused_at = float("-inf")
        self._first_refused_at: float | None = None
        self._taken: deque[float] = deque()  # when accepted requests were sent
        self._changed = asyncio.Condition()

    @property
    def rate(self) -> float | None:
        """Requests a second that may leave now; None while nothing was refused."""
        if self._base is None:
            return None
        calm_s = max(0.0, self._now() - self._blocked_until)
        return self._base * (1 + GROWTH * (calm_s / self._scale_s) ** 3)

    async def enter(self) -> float:
        """Wait until a request may leave; returns its time, which `taken` or `refused` gets back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self._width)
            self._running += 1
        try:
            while (wait := self._wait_s()) > 0:
                await self._sleep(wait)
        except BaseException:
            await self._leave()
            raise
        self.num_sent += 1
        return self._now()

    async def taken(self, sent_at: float) -> None:
        """The server took the request."""
        self._taken.append(sent_at)
        while self._taken[0] < sent_at - 10 * WINDOW_S:
            self._taken.popleft()
        self._width = min(self.parallel, self._width + 1)
        if self._first_refused_at is not None and sent_at <= self._first_refused_at:
            self._measure(0.0)  # it was under way at the first refusal, and counts too
        await self._leave()

    async def failed(self) -> None:
        """The request ended otherwise: no answer, or an error of the server's."""
        await self._leave()

    async def refused(self, sent_at: float, retry_after_s: float) -> None:
        """The server said 429."""
        self.num_refused += 1
        now = self._now()
        if sent_at > self._refused_at:  # one that was under way at the last refusal tells nothing new
            rate = self.rate
            if self._base is None or rate is None:
                self._first_refused_at = sent_at
                self._measure(1 / max(retry_after_s, WINDOW_S))
            else:
                self._first_refused_at = None
                soon = now - max(self._refused_at, self._blocked_until) < SOON_S
                if not soon:
                    self._scale_s = (
                        min(max(self._scale_s * 2, SURE_S), SUREST_S) if rate < NEAR * self._base else SURE_S
                    )
                self._base = rate * (HARD_BACK_OFF if soon else BACK_OFF)
        self._refused_at = now
        self._blocked_until = max(self._blocked_until, now + retry_after_s)
        await self._leave()

    def _measure(self, at_least: float) -> None:
        """Take the rate that the server took in the last second before the first refusal."""
        assert self._first_refused_at is not None
        num_taken = sum(self._first_refused_at - WINDOW_S < at <= self._first_refused_at for at in self._taken)
        self._base = max(num_taken / WINDOW_S * MARGIN, at_least * MARGIN, self._base or 0.0)
        self._scale_s = SURE_S if num_taken >= ENOUGH else UNSURE_S

    def _wait_s(self) -> float:
        """Seconds until the next request may leave; 0 books its place."""
        now = self._now()
        if now < self._blocked_until:
            return self._blocked_until - now
        rate = self.rate
        if rate is None:
            return 0.0
        if now < self._next_at:
            return self._next_at - now
        # A late request may be followed a little sooner, so that a slow machine keeps the rate.
        self._next_at = max(self._next_at, now - CREDIT / rate, self._blocked_until) + 1 / rate
        return 0.0

    async def _leave(self) -> None:
        async with self._changed:
            self._running -= 1
            self._changed.notify_all()
