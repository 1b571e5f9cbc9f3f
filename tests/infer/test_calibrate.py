"""Which split of the cores is taken, given what each was measured to do."""

from __future__ import annotations

import pytest

from llmforge.infer.local.calibrate import ROUNDS, fastest, splits


def test_powers_of_two_are_tried_up_to_one_worker_per_core():
    assert [splits(cores) for cores in (1, 2, 3, 4, 12)] == [[1], [1, 2], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({(1, 2): 61.3, (2, 1): 110.0}, 2),  # SPEED.md part B: two single-threaded workers, 1.8 times one with two
        ({(1, 2): 100.0, (2, 1): 104.0}, 1),  # so little is not worth a second cache
        ({(1, 2): 100.0, (2, 1): 106.0}, 2),
        ({(1, 4): 100.0, (2, 2): 180.0, (4, 1): 188.0}, 2),
        ({(1, 4): 100.0, (2, 2): 104.0, (4, 1): 107.0}, 4),  # against the best taken so far, not against the last
        ({(1, 4): 100.0, (2, 2): 90.0, (4, 1): 0.0}, 1),  # no memory for four
        ({(1, 12): 10.0, (2, 6): 20.0, (4, 3): 40.0, (8, 1): 30.0}, 4),
        ({(1, 2): 0.0, (2, 1): 0.0}, 1),
        ({(1, 1): 30.0}, 1),
    ],
)
def test_the_fastest_split_is_taken(measured, expected):
    asked = []

    def speed(workers, threads):
        asked.append((workers, threads))
        return measured[workers, threads]

    cores = max(workers * threads for workers, threads in measured)
    assert fastest(cores, speed) == expected
    assert asked == ROUNDS * list(measured)  # in turn


def test_a_split_that_was_disturbed_once_is_judged_by_its_best():
    found = {(1, 2): [60.0, 61.0], (2, 1): [20.0, 110.0]}
    assert fastest(2, lambda *split: found[split].pop(0)) == 2
