"""Workers that share cores: each has its part while it computes, and borrows those of the others that wait."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from llmforge.infer.local.cores import SharedCores, usable_cores


class Worker:
    """A forked process that enters, pauses and leaves as it is told; `enter` gives its threads."""

    def __init__(self, cores, number):
        self.pipe, theirs = multiprocessing.Pipe()
        if not (pid := os.fork()):
            try:
                self._obey(cores, number, theirs)
            finally:
                os._exit(0)
        theirs.close()
        self.pid = pid

    @staticmethod
    def _obey(cores, number, pipe):
        while (word := pipe.recv()) is not None:
            pipe.send(getattr(cores, word)(number))

    def tell(self, word):
        self.pipe.send(word)

    def heard(self, within_s=30.0):
        assert self.pipe.poll(within_s)
        return self.pipe.recv()

    def do(self, word):
        self.tell(word)
        return self.heard()

    def is_silent(self):
        return not self.pipe.poll(0.2)

    def kill(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self.pipe.close()


@pytest.fixture
def workers(request, monkeypatch):
    """`request.param`: cores, workers."""
    num_cores, num_workers = request.param
    monkeypatch.setattr("llmforge.infer.local.cores.usable_cores", lambda: num_cores)
    cores = SharedCores(num_workers)
    started = [Worker(cores, number) for number in range(num_workers)]
    yield started
    for worker in started:
        if not worker.pipe.closed:
            worker.kill()


@pytest.mark.parametrize("workers", [(2, 2)], indirect=True)
def test_who_works_alone_has_all_cores_until_the_other_begins(workers):
    one, two = workers
    assert one.do("enter") == 2
    two.tell("enter")
    assert two.is_silent()  # the step under way has its core
    one.do("pause")
    assert two.heard() == 1
    assert one.do("enter") == 1
    two.do("pause")
    assert (two.do("enter"), one.do("enter")) == (1, 1)  # step after step
    two.do("leave")
    assert one.do("enter") == 2


@pytest.mark.parametrize("workers", [(2, 2)], indirect=True)
def test_a_core_that_is_given_back_is_not_taken_again_from_its_owner(workers):
    one, two = workers
    one.do("enter")
    two.tell("enter")
    assert two.is_silent()
    one.tell("pause")
    one.tell("enter")
    assert (one.heard(), one.heard(), two.heard()) == (None, 1, 1)


@pytest.mark.parametrize("workers", [(2, 2)], indirect=True)
def test_a_killed_worker_holds_no_core(workers):
    one, two = workers
    assert one.do("enter") == 2
    two.tell("enter")
    assert two.is_silent()
    one.kill()
    assert two.heard() == 1


@pytest.mark.parametrize(
    ("workers", "alone", "beside"),
    [((3, 2), 3, 1), ((8, 2), 8, 4), ((2, 4), 2, 1), ((8, 4), 8, 2)],
    indirect=["workers"],
)
def test_parts_are_equal_and_never_empty(workers, alone, beside):
    first, *others = workers
    assert first.do("enter") == alone
    for worker in others:
        worker.tell("enter")
        assert worker.is_silent()
    first.do("pause")
    for worker in others:
        worker.heard()
        worker.do("pause")  # one that came while others waited may have borrowed
    assert [worker.do("enter") for worker in workers] == [beside] * len(workers)


def test_threads_that_the_recipe_fixes_are_lent_to_nobody():
    cores = SharedCores(2, fixed=3)
    assert cores.enter(0) == cores.enter(1) == 3
    cores.pause(0)
    cores.leave(0)
    cores.leave(1)


def test_omp_num_threads_bounds_the_cores(monkeypatch):
    allowed = len(os.sched_getaffinity(0))
    for text, expected in (("1", 1), ("10000", allowed), ("0", allowed), ("x", allowed)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert usable_cores() == expected
