"""Requests on their way, and the workers they are given to, as the engine sees them."""

from __future__ import annotations

import asyncio
from typing import Any

from llmforge.infer.local.fleet import Worker
from llmforge.infer.local.prefixes import KnownPrefixes
from llmforge.infer.local.reply import Job
from llmforge.infer.protocol import Piece

AHEAD = 16  # a worker gets a job beyond its rows for so many of them, so that a row which ends is followed at once
REPLY_TOKENS = 32  # a reply's length as the work of a worker is guessed; a token generated costs about one read


class Ticket:
    """A request on its way."""

    def __init__(self, number: int, job: Job):
        self.number, self.job = number, job
        self.items: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.has_pieces = False
        self.post: Post | None = None  # where it runs
        self.work = 0


class Post:
    """A worker as the engine sees it."""

    def __init__(self, number: int, worker: Worker):
        self.number, self.worker = number, worker
        self.tickets: dict[int, Ticket] = {}
        self.prefixes = KnownPrefixes()
        self.stats: Any = None
        self.is_alive = True

    @property
    def num_rows(self) -> int:
        return sum(ticket.job.num_rows for ticket in self.tickets.values())

    def has_room(self, job: Job) -> bool:
        rows = self.worker.max_rows
        return self.is_alive and (not self.tickets or self.num_rows + job.num_rows <= rows + rows // AHEAD)

    def cost(self, job: Job) -> tuple[int, int]:
        """(what it would have to compute in all, what of it is this job's)."""
        own = len(job.prompt_ids) - self.prefixes.num_known(job.adapter, job.prompt_ids) + REPLY_TOKENS * job.num_rows
        return own + sum(ticket.work for ticket in self.tickets.values()), own
