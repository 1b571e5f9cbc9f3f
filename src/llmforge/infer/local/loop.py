"""The loop of a worker: take messages, step, hand pieces out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llmforge.infer.local.messages import Answer, Begin, Call, Came, Cancel, Problem, Quit, Refused
from llmforge.infer.protocol import Piece

if TYPE_CHECKING:
    from llmforge.infer.local.reply import Job
    from llmforge.infer.local.served import ServedModels

log = logging.getLogger(__name__)
TELL_S = 0.1  # how the worker is, is told so often at least


class CoreLoop:
    """Runs the core of `served` until told to quit.

    Args:
        receive: the next message; None when there is none now. With True it waits for one.
        send: takes a message.
    """

    def __init__(self, served: ServedModels, receive: Callable[[bool], Any], send: Callable[[Any], None]):
        self.served, self.receive, self.send = served, receive, send
        self._jobs: dict[int, Job] = {}
        self._numbers: dict[int, int] = {}  # by id of the job
        self._held: dict[tuple[int, int], list[Piece]] = {}  # by number and reply

    def run(self) -> None:
        """Work; whatever the core raises outside a request ends the worker."""
        core, told_at = self.served.core, 0.0
        while True:
            while (message := self.receive(core.is_idle)) is not None:
                if isinstance(message, Quit):
                    return self._leave()
                self._take(message)
            if not core.is_idle:
                pieces = list(self._wanted(core.step()))
                for number, piece in pieces:
                    if piece.usage is not None:  # its last
                        del self._numbers[id(self._jobs.pop(number))]
                if pieces or time.monotonic() - told_at >= TELL_S:
                    self.send(Came(pieces, core.stats()))
                    told_at = time.monotonic()

    def _wanted(self, pieces: Iterable[tuple[Job, Piece]]) -> Iterator[tuple[int, Piece]]:
        """Pieces with the numbers of their requests; of a reply that nobody reads as it grows, the first and one more.

        For each token of each reply the engine's process would have to be told otherwise, which costs it more than all
        else that it does.
        """
        for job, piece in pieces:
            number = self._numbers[id(job)]
            if job.request.streams:
                yield number, piece
                continue
            key = (number, piece.index)
            if piece.finish_reason is not None:
                yield number, Piece.joined([*self._held.pop(key, ()), piece])
            elif key in self._held:
                self._held[key].append(piece)
            else:  # the first comes at once, so that its time is known
                self._held[key] = []
                yield number, piece

    def _leave(self) -> None:
        """Give the core back empty: what still runs is cancelled, and nobody hears its last pieces."""
        for job in self._jobs.values():
            job.cancelled = True
        while not self.served.core.is_idle:
            self.served.core.step()

    def _take(self, message: Begin | Cancel | Call) -> None:
        match message:
            case Begin(number, job):
                try:
                    self.served.core.check(job)
                    self.served.core.submit(job)
                except Exception as error:
                    self.send(Refused(number, Problem.of(error)))
                else:
                    self._jobs[number], self._numbers[id(job)] = job, number
            case Cancel(number):
                if number in self._jobs:
                    self._jobs[number].cancelled = True
            case Call(number, method, args):
                try:
                    self.send(Answer(number, getattr(self.served, method)(*args)))
                except Exception as error:
                    if not isinstance(error, Exception):
                        log.exception("%s failed", method)
                    self.send(Answer(number, error=Problem.of(error)))
