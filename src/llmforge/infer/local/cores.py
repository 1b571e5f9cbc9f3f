"""How many threads a worker computes with, while others of the same machine compute too."""

from __future__ import annotations

import mmap
import os


def usable_cores() -> int:
    """Cores this process may run on, or OMP_NUM_THREADS where that is less."""
    allowed = len(os.sched_getaffinity(0))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else allowed


class SharedCores:
    """Cores that forked workers share: each takes an equal part of those whose owners are at work.

    Args:
        fixed: threads of every worker, whoever else is at work; None shares all cores.
    """

    def __init__(self, num_workers: int, fixed: int | None = None):
        self.num_cores, self.fixed = usable_cores(), fixed
        self._busy = mmap.mmap(-1, max(1, num_workers))  # anonymous and shared: forks see each other's
        self._threads = 0

    def enter(self, worker: int) -> None:
        """The worker is about to compute."""
        import torch

        self._busy[worker] = 1
        share = self.num_cores // max(1, sum(self._busy[:]))
        wanted = self.fixed or max(1, share)
        if wanted != self._threads:
            torch.set_num_threads(wanted)
            self._threads = wanted

    def leave(self, worker: int) -> None:
        """The worker waits."""
        self._busy[worker] = 0
