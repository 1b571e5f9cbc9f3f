"""Workers in processes of their own, forked from one that has loaded the recipe's models."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError
from llmforge.infer.local.child import END_S, Calibrate, Fork, Forked, Loaded
from llmforge.infer.local.encoder_files import is_encoder, load_encoder_text
from llmforge.infer.local.intake import Intake
from llmforge.infer.local.messages import Answer, Call, Died, Problem, Quit
from llmforge.infer.protocol import EngineUnavailable
from llmforge.model.text import load_text

log = logging.getLogger(__name__)
# Not with -m: classes of a module run as __main__ would not be found on this side of the connection.
START = "import sys; from llmforge.infer.local.child import main; sys.exit(main(int(sys.argv[1])))"
MAX_DEATHS = 3  # workers are made anew so often within DEATHS_S; then something is wrong with all of them
DEATHS_S = 60.0
# OpenMP's threads wait for each other for about 0.1 ms before they sleep, instead of 7. Beside two other busy processes
# on two cores a step of two threads took 370 ms instead of 512, and half of the CPU time (135M model, 8 rows).
PATIENCE = {"GOMP_SPINCOUNT": "5000"}
# A step of few rows waits for its weights to come from memory. One worker reads them once for all rows, with the cores
# of the others.
TOGETHER = 8


class ProcessWorker:
    """One end of the connection to a worker process.

    A thread writes to it, since a worker reads between two steps only and the connection holds so much: whoever sends
    many long prompts must not wait for a step.
    """

    def __init__(self, connection: Connection, max_rows: int, pid: int):
        self.connection, self.max_rows, self.pid = connection, max_rows, pid
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._write, name="llmforge-to-worker", daemon=True)

    def start(self, hear: Callable[[Any], None]) -> None:
        """Let `hear` get its messages, in a thread."""
        threading.Thread(target=self._listen, args=(hear,), name="llmforge-worker", daemon=True).start()
        self._sender.start()

    def send(self, message: Any) -> None:
        """Never waits."""
        self._outbox.put(message)

    def close(self) -> None:
        """Close the connection, once the last message, Quit, is written or END_S have passed."""
        if self._sender.is_alive():
            self._sender.join(END_S)
        with contextlib.suppress(OSError):
            self.connection.close()

    def _write(self) -> None:
        while True:
            message = self._outbox.get()
            try:
                self.connection.send(message)
            except OSError:  # it has died; the listener says so
                return
            if isinstance(message, Quit):
                return

    def _listen(self, hear: Callable[[Any], None]) -> None:
        while True:
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                hear(Died("its process ended"))
                return
            hear(message)


class ProcessFleet:
    """The recipe's models, loaded in a process of their own.

    Raises:
        RecipeError: what cannot be loaded; two models of one name.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self._replicas, self._threads = (_number(recipe, name) for name in ("replicas", "threads"))
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", START, str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**PATIENCE, **os.environ}
        )
        theirs.close()
        self.control = Connection(ours.detach())
        self.workers: list[ProcessWorker] = []
        self.together = TOGETHER if self._threads is None else 0
        self._deaths: list[float] = []
        self._calls = 0
        self._talking = threading.Lock()  # one question to the process at a time
        loaded = self._ask(recipe)
        self.loaded: Loaded = loaded
        folder = Path(loaded.folder)
        tokenizer, template = load_encoder_text(folder) if is_encoder(folder) else load_text(recipe, folder)
        self.intake = Intake(tokenizer, template, loaded.limits, loaded.served)
        self.cards, self.capabilities = loaded.cards, loaded.capabilities

    def prepare(self) -> None:
        """Fork the workers; with `replicas: auto`, after trying how many are fastest."""
        count = (self._replicas or self._ask(Calibrate())) if self.loaded.forks else 1
        self.capabilities = replace(self.capabilities, max_running=self.capabilities.max_running * count)
        self.workers = [self._fork(number, count) for number in range(count)]

    def revive(self, number: int) -> ProcessWorker | None:
        """A new worker in the place of one that died, or None when it cannot be helped."""
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < DEATHS_S] + [now]
        if len(self.workers) == 1 or len(self._deaths) > MAX_DEATHS or self.process.poll() is not None:
            return None
        self.workers[number] = self._fork(number, len(self.workers))
        return self.workers[number]

    def remember(self, method: str, *args: Any) -> None:
        """Let workers made from now on have this change too."""
        if len(self.workers) > 1:
            self._calls += 1
            answer = self._ask(Call(self._calls, method, args))
            if isinstance(answer, Answer) and answer.error is not None:
                raise answer.error.as_error()

    def stop(self) -> None:
        """Let go of all processes; they end by themselves, after the step they are in."""
        for worker in self.workers:
            worker.send(Quit())
        for worker in self.workers:
            worker.close()
        with contextlib.suppress(OSError):
            self.control.close()
        try:
            self.process.wait(END_S + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _fork(self, number: int, count: int) -> ProcessWorker:
        ours, theirs = socket.socketpair()
        self._talking.acquire()
        try:
            self.control.send(Fork(number, count, self._threads))
            send_handle(self.control, theirs.fileno(), self.process.pid)
            forked: Forked = self.control.recv()
        except (EOFError, OSError) as error:
            raise EngineUnavailable(f"the engine's process has ended ({error})") from None
        finally:
            self._talking.release()
            theirs.close()
        self.intake.limits = replace(self.intake.limits, capacity=forked.capacity)
        return ProcessWorker(Connection(ours.detach()), self.loaded.max_rows, forked.pid)

    def _ask(self, message: Any) -> Any:
        """Send to the process that holds the weights, and wait for what it says."""
        try:
            with self._talking:
                self.control.send(message)
                answer = self.control.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            raise EngineUnavailable(f"the engine's process ended with code {code} while loading") from None
        if isinstance(answer, Problem):
            self.process.wait()
            raise answer.as_error()
        return answer


def _number(recipe: Recipe, key: str) -> int | None:
    """The value of `replicas` or `threads`; None is auto.

    Raises:
        RecipeError: neither auto nor a number.
    """
    value = getattr(recipe.serve, key)
    if value == "auto":
        return None
    if isinstance(value, int) and value >= 1:
        return value
    raise RecipeError(f"{key}: got {value!r}, expected auto or a whole number from 1 on")
