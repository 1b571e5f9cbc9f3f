"""The process that holds the weights: loads them once and lets workers be forked from it, which share its memory.

Started by ProcessFleet, which gives it one end of a socket pair. It computes nothing in threads before a fork, since a
forked process has no other threads. With a single worker, or a GPU, which cannot be shared by forking, the process is
the worker itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import TYPE_CHECKING, Any

from llmforge.infer.local.cores import SharedCores, usable_cores
from llmforge.infer.local.intake import Limits
from llmforge.infer.local.loop import CoreLoop
from llmforge.infer.local.messages import Answer, Call, Problem, Quit
from llmforge.infer.protocol import Capabilities, ModelCard

if TYPE_CHECKING:
    from llmforge.config.schema import Recipe
    from llmforge.infer.local.served import ServedModels

END_S = 10.0  # workers get this long for the step they are in when the engine has gone


@dataclass(frozen=True)
class Loaded:
    """What the engine needs to know of the loaded models."""

    folder: str
    limits: Limits
    served: dict[str, str]
    cards: dict[str, ModelCard]
    capabilities: Capabilities
    max_rows: int
    forks: bool  # whether several workers can share the weights


@dataclass(frozen=True)
class Fork:
    """Make worker `number` of `num_workers`; the handle of its connection follows."""

    number: int
    num_workers: int
    threads: int | None


@dataclass(frozen=True)
class Forked:
    """The worker's process, and the tokens its cache has room for (None: not limited)."""

    pid: int
    capacity: int | None


@dataclass(frozen=True)
class Calibrate:
    """Find out how many workers of how many threads compute the most."""


class Nursery:
    """The loaded models, and the workers forked from them."""

    def __init__(self, served: ServedModels, control: Connection, cache_bytes: int | None):
        self.served, self.control, self.cache_bytes = served, control, cache_bytes
        self.cores: SharedCores | None = None
        self.children: list[int] = []

    def live(self) -> None:
        """Do what the engine says until it has gone."""
        while True:
            try:
                message = self.control.recv()
            except (EOFError, OSError):
                return
            match message:
                case Quit():
                    return
                case Fork():
                    self.fork(message)
                case Calibrate():
                    from llmforge.infer.local.calibrate import calibrate

                    self.control.send(calibrate(self.served.core) if usable_cores() > 1 else 1)
                case Call(number, method, args):
                    try:
                        getattr(self.served, method)(*args)
                        self.control.send(Answer(number))
                    except Exception as error:
                        self.control.send(Answer(number, error=Problem.of(error)))

    def fork(self, order: Fork) -> None:
        """A worker on the connection whose handle comes next."""
        handle = recv_handle(self.control)
        if self.cores is None:  # the first one
            self.cores = SharedCores(order.num_workers, order.threads)
            set_cache(self.served, self.cache_bytes, order.num_workers)
        capacity = self.served.core.limits.capacity
        if order.num_workers == 1:
            take_cache(self.served)
            self.control.send(Forked(os.getpid(), capacity))
            self.work(Connection(handle), order)
            return
        self.reap()
        begun, begins = os.pipe()
        pid = os.fork()
        if pid:
            os.close(handle)
            os.close(begins)
            os.read(begun, 1)  # nothing: the other end was closed, by a worker that has its cache or that is no more
            os.close(begun)
            self.children.append(pid)
            self.control.send(Forked(pid, capacity))
            return
        code = 1
        try:
            self.control.close()
            os.close(begun)
            take_cache(self.served)
            os.close(begins)
            self.work(Connection(handle), order)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def work(self, connection: Connection, order: Fork) -> None:
        """Be a worker until the connection ends."""
        import torch

        assert self.cores is not None
        cores, number = self.cores, order.number
        num_threads = torch.get_num_threads()

        def receive(wait: bool) -> Any:
            nonlocal num_threads
            cores.leave(number) if wait else cores.pause(number)
            try:
                message = connection.recv() if connection.poll(None if wait else 0) else None
            except (EOFError, OSError):
                return Quit()
            if (wanted := cores.enter(number)) != num_threads:
                torch.set_num_threads(wanted)
                num_threads = wanted
            return message

        def send(message: Any) -> None:
            with contextlib.suppress(OSError):  # the engine has gone; the next receive says so
                connection.send(message)

        CoreLoop(self.served, receive, send).run()

    def end(self) -> None:
        """Wait for the workers, which end when the engine does; then make sure."""
        ends_at = time.monotonic() + END_S
        while self.children and time.monotonic() < ends_at:
            self.reap()
            time.sleep(0.02)
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Forget the workers that have ended."""
        self.children = [pid for pid in self.children if os.waitpid(pid, os.WNOHANG) == (0, 0)]


def cache_bytes(recipe: Recipe) -> int | None:
    """What the recipe gives the cache of all workers together."""
    gb = recipe.serve.kv_cache_gb
    return None if gb is None else int(gb * 10**9)


def set_cache(served: ServedModels, num_bytes: int | None, num_workers: int) -> None:
    """Give the cache of a core that writes its size; no memory is taken yet."""
    from llmforge.infer.local.core import LocalCore

    if isinstance(served.core, LocalCore):
        served.core.set_cache(num_bytes, num_workers)


def take_cache(served: ServedModels) -> None:
    """Take the memory of a core's cache, before anybody waits for it."""
    from llmforge.infer.local.core import LocalCore

    if isinstance(served.core, LocalCore):
        served.core.take_cache()


def main(handle: int) -> int:
    """Load what the recipe says and live."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the engine, which drains and then lets go of this one
        signal.signal(number, signal.SIG_IGN)
    control = Connection(handle)
    recipe = control.recv()
    try:
        import torch

        from llmforge.config.plugins import load_plugin
        from llmforge.infer.local.core import LocalCore
        from llmforge.infer.local.served import ServedModels

        torch.set_num_threads(1)
        for plugin in recipe.plugins:
            load_plugin(plugin)
        served = ServedModels.from_recipe(recipe)
        core = served.core
        set_cache(served, cache_bytes(recipe), 1)
        loaded = Loaded(
            str(served.folder),
            core.limits,
            dict(served.table),
            {card.id: card for card in served.cards},
            served.capabilities(),
            core.max_rows,
            isinstance(core, LocalCore) and core.device.type == "cpu",
        )
    except Exception as error:
        problem = Problem.of(error)
        if problem.kind == "failure":
            traceback.print_exc()
        control.send(problem)
        return 1
    control.send(loaded)
    nursery = Nursery(served, control, cache_bytes(recipe))
    nursery.live()
    nursery.end()
    return 0
