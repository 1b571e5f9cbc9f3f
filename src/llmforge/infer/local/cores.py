"""How many threads a worker computes with, while others of the same machine compute too.

Never more threads than cores, not even for one step: a thread too many waits for its turn on a core at the end of each
of the hundreds of parallel regions of a step, and all others of its worker wait for it. With two threads of one worker
beside one of another on two cores, a step took up to 25 s under real-time scheduling, whose turns are 100 ms.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile


def usable_cores() -> int:
    """Cores this process may run on, or OMP_NUM_THREADS where that is less."""
    allowed = len(os.sched_getaffinity(0))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else allowed


class SharedCores:
    """Cores in equal parts, one for each of several forked workers; who works alone borrows those of the others.

    A part is a byte of a file, locked by whoever computes on it; a borrowed one for a step at a time. So one that
    begins waits for the step under way, without spinning, and the kernel unlocks what a killed one held.

    Args:
        fixed: threads of every worker, whoever else is at work; None shares all cores.
    """

    def __init__(self, num_workers: int, fixed: int | None = None):
        self.num_cores, self.num_workers, self.fixed = usable_cores(), num_workers, fixed
        self._wanted = mmap.mmap(-1, num_workers)  # parts their owners need; forks see each other's
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._held: set[int] = set()

    def enter(self, worker: int) -> int:
        """The worker is about to compute, with so many threads from now on; waits for its own part of the cores."""
        if self.fixed is not None:
            return self.fixed
        self._wanted[worker] = 1
        for part in (worker, *range(self.num_workers)):
            if part not in self._held and (part == worker or not self._wanted[part]) and self._lock(part, worker):
                self._held.add(part)
        if len(self._held) == self.num_workers:
            return self.num_cores
        return min(self.num_cores, max(1, self.num_cores // self.num_workers) * len(self._held))

    def pause(self, worker: int) -> None:
        """Between two steps: what is borrowed can be had back."""
        for part in self._held - {worker}:
            self._unlock(part)

    def leave(self, worker: int) -> None:
        """The worker waits; others may borrow its part."""
        if self.fixed is None:
            self._wanted[worker] = 0
            for part in set(self._held):
                self._unlock(part)

    def _lock(self, part: int, worker: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if part == worker else fcntl.LOCK_NB), 1, part)
        except (BlockingIOError, PermissionError):  # which of them is the system's choice
            return False
        return True

    def _unlock(self, part: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, part)
        self._held.discard(part)
