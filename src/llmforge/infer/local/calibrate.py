"""Trying which split of the cores computes the most: one worker with all threads, or several with fewer.

Products of the size a step has do not split well over threads: on 2 cores, two workers of one thread gave 1.8 times
the tokens of one worker with two (135M model, 32 replies; SPEED.md).
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

from llmforge.infer.local.cores import usable_cores
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds

log = logging.getLogger(__name__)
ROWS = 32  # replies decoded in all, the load that is planned for
ROUNDS = 2  # each split's best counts, so that one disturbed moment does not decide for as long as the server runs
TRIAL_S = 0.8
# More is read than written, in the same steps: reading splits otherwise than writing.
PROMPT_TOKENS, NEW_TOKENS = 64, 16
WORTH = 1.05  # more workers are taken for at least this much more speed, since each has its own cache


def splits(num_cores: int) -> list[int]:
    """Numbers of workers to try: 1, 2, 4, ... up to one per core."""
    counts = []
    count = 1
    while count <= num_cores:
        counts.append(count)
        count *= 2
    return counts


def calibrate(core: Any) -> int:
    """The number of workers that computes the most tokens per second; each one gets an equal part of the cores."""
    return fastest(usable_cores(), lambda workers, threads: _speed(core, workers, threads))


def fastest(num_cores: int, speed: Callable[[int, int], float]) -> int:
    """The number of workers worth having.

    Args:
        speed: tokens per second of (workers, threads of each); 0 where they cannot run.
    """
    counts = splits(num_cores)
    found = dict.fromkeys(counts, 0.0)
    for _ in range(ROUNDS):
        for count in counts:
            found[count] = max(found[count], speed(count, num_cores // count))
    best, best_speed = 1, 0.0
    for count in counts:
        if found[count] > best_speed * (WORTH if best_speed else 1):
            best, best_speed = count, found[count]
    told = (f"{count} x {num_cores // count} {found[count]:.0f}/s" for count in counts)
    log.info("replicas: %d, by tokens of workers x threads: %s", best, ", ".join(told))
    return best


def _speed(core: Any, num_workers: int, threads: int) -> float:
    """Tokens per second of so many forked workers together."""
    pipes, pids = [], []
    for _ in range(num_workers):
        ours, theirs = Pipe()
        if not (pid := os.fork()):
            try:
                ours.close()
                _trial(core, theirs, max(1, ROWS // num_workers), threads)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()
        pipes.append(ours)
        pids.append(pid)
    try:
        for pipe in pipes:
            pipe.recv()  # everybody has begun
        for pipe in pipes:
            pipe.send(True)
        return sum(pipe.recv() for pipe in pipes)
    except EOFError:  # for example no memory for so many
        return 0.0
    finally:
        for pipe in pipes:
            pipe.close()  # ends those that wait for a word, when another one has failed
        for pid in pids:
            os.waitpid(pid, 0)


def _trial(core: Any, pipe: Connection, num_rows: int, threads: int) -> None:
    """Read and write for a moment, and say how many tokens per second that were."""
    import torch

    torch.set_num_threads(threads)
    name = next(iter(core.served), "")
    numbers = itertools.count()

    def begin() -> None:
        number = next(numbers)
        ids = tuple((number * 7919 + place * 104729 + 11) % core.vocab_size for place in range(PROMPT_TOKENS))
        sampling = Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True)
        core.submit(core.prepare(GenerateRequest(name, TokenIds(ids), sampling)))

    def step() -> None:
        for _, piece in core.step():
            if piece.usage is not None:  # its last
                begin()

    for _ in range(num_rows):
        begin()
    step()
    pipe.send(True)
    pipe.recv()
    started, tokens, num_steps = time.perf_counter(), _computed(core), 0
    while num_steps < 2 or time.perf_counter() - started < TRIAL_S:
        step()
        num_steps += 1
    pipe.send((_computed(core) - tokens) / (time.perf_counter() - started))


def _computed(core: Any) -> int:
    """Tokens that the core has computed so far; of padded batches only those written are known."""
    stats = core.stats()
    return stats.computed_tokens or stats.completion_tokens
