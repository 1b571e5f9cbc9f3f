"""Requests per minute, of each client and of all together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from llmforge.serve.errors import ApiError
from llmforge.serve.keys import Client

MOST_KEPT = 4096  # clients remembered; those that could send their whole minute's worth again are forgotten first


class Bucket:
    """Holds a minute's worth of requests, and refills evenly."""

    def __init__(self, per_minute: int, now: float):
        self.per_minute, self.left, self.at = per_minute, float(per_minute), now

    def look(self, now: float) -> float:
        """Seconds until a request may come; 0 for now."""
        self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now
        return 0.0 if self.left >= 1 else (1 - self.left) * 60 / self.per_minute


class Rates:
    """The limits of one server; either may be None."""

    def __init__(self, per_client: int | None, total: int | None, clock: Callable[[], float] = time.monotonic):
        self.per_client, self.clock = per_client, clock
        self._total = None if total is None else Bucket(total, clock())
        self._clients: dict[str, Bucket] = {}

    def take(self, client: Client) -> dict[str, str]:
        """Count a request; returns the headers that tell a client how many are left.

        Raises:
            ApiError: 429 with Retry-After; the request is not counted.
        """
        now = self.clock()
        own = self._bucket(client, now)
        for bucket, whose in ((own, f"client {client.name!r}"), (self._total, "all clients together")):
            if bucket is not None and (wait_s := bucket.look(now)):
                seconds = str(math.ceil(wait_s))
                message = f"{whose} may send {bucket.per_minute} requests per minute; try again in {seconds} s"
                headers = {"Retry-After": seconds, **_told(bucket)}
                raise ApiError(429, message, code="rate_limit_exceeded", headers=headers)
        for bucket in (own, self._total):
            if bucket is not None:
                bucket.left -= 1
        return _told(own) if own is not None else {}

    def _bucket(self, client: Client, now: float) -> Bucket | None:
        limit = client.rate_limit or self.per_client
        if limit is None:
            return None
        bucket = self._clients.get(client.name)
        if bucket is None or bucket.per_minute != limit:
            if len(self._clients) >= MOST_KEPT:
                self._forget(now)
            bucket = self._clients[client.name] = Bucket(limit, now)
        return bucket

    def _forget(self, now: float) -> None:
        for bucket in self._clients.values():
            bucket.look(now)
        kept = sorted(self._clients.items(), key=lambda entry: entry[1].left / entry[1].per_minute)[: MOST_KEPT // 2]
        self._clients = dict(kept)


def _told(bucket: Bucket) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(bucket.per_minute),
        "x-ratelimit-remaining-requests": str(max(0, int(bucket.left))),
    }
