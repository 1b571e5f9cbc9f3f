"""The step plan: every row once an epoch, the same passes on every rank, the same rows after resuming."""

from __future__ import annotations

import numpy as np
import pytest

from llmforge.data.example import IGNORE, Encoded, EncodedSet
from llmforge.train.steps import Line, StepPlan, StepShape, step_loader


def rows(count: int = 23) -> EncodedSet:
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        ids = [number, *draw.integers(100, 200, draw.integers(2, 20)).tolist()]  # the first token names the row
        made.append(Encoded(ids, [IGNORE, *ids[1:]]))
    return EncodedSet.of(made)


def names(batches) -> list[int]:
    """Which rows the real batches hold."""
    return [int(row) for batch in batches if batch.num_rows for row in batch.rows]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_by_length": True},
        {"pack_to": 40},
        {"line": Line(50, True)},
        {"line": Line(50, False), "pack_to": 40},
    ],
    ids=str,
)
def test_every_row_is_learned_once_an_epoch_and_ranks_make_the_same_passes(ranks, options):
    plans = [StepPlan(rows(), StepShape(2, 3, ranks, rank), seed=1, pad_id=0, **options) for rank in range(ranks)]
    for epoch in (0, 1):
        seen = []
        for step in range(plans[0].num_steps):
            passes = [plan[epoch, step] for plan in plans]
            assert len({len(batches) for batches in passes}) == 1
            seen += [name for batches in passes for name in names(batches)]
        assert sorted(seen) == list(range(23))


def test_epochs_differ_and_the_same_epoch_does_not():
    def order(plan, epoch):
        return [name for step in range(plan.num_steps) for name in names(plan[epoch, step])]

    one, two = (StepPlan(rows(), StepShape(2, 1), seed=1, pad_id=0) for _ in range(2))
    assert order(one, 0) == order(two, 0)
    assert order(one, 0) != order(one, 1)
    straight = StepPlan(rows(), StepShape(1, 1), seed=1, pad_id=0, shuffle=False)
    assert order(straight, 0) == order(straight, 5) == list(range(23))


def test_a_step_holds_the_same_rows_however_it_is_cut():
    shapes = [StepShape(8, 1), StepShape(4, 2), StepShape(2, 4), StepShape(1, 8)]
    plans = [StepPlan(rows(), shape, seed=1, pad_id=0) for shape in shapes]
    for step in range(plans[0].num_steps):
        assert len({tuple(sorted(names(plan[0, step]))) for plan in plans}) == 1
    assert [len(plan[0, 0]) for plan in plans] == [1, 2, 4, 8]


def test_grouping_by_length_saves_padding():
    def padding(plan):
        batches = [batch for step in range(plan.num_steps) for batch in plan[0, step]]
        return sum(batch.input_ids.size - batch.num_tokens for batch in batches)

    shape = StepShape(4, 1)
    grouped, mixed = (StepPlan(rows(80), shape, seed=1, pad_id=0, group_by_length=on) for on in (True, False))
    assert padding(grouped) < 0.3 * padding(mixed)


def test_packed_sequences_stay_within_the_limit():
    plan = StepPlan(rows(), StepShape(1, 1), seed=1, pad_id=0, pack_to=40)
    sizes = [batch.input_ids.shape[1] for step in range(plan.num_steps) for batch in plan[0, step]]
    assert max(sizes) <= 40
    assert len(sizes) < 12


def test_fillers_count_nothing():
    plan = StepPlan(rows(3), StepShape(1, 2, 2, 1), seed=1, pad_id=0)
    real, spare = plan[0, 0]
    assert (real.num_rows, spare.num_rows) == (1, 0)


def test_the_loader_yields_one_item_a_step_and_follows_the_epoch():
    plan = StepPlan(rows(), StepShape(2, 2), seed=1, pad_id=0)
    loader = step_loader(plan)
    loader.batch_sampler.batch_sampler.set_epoch(1)
    items = list(loader)
    assert len(items) == len(loader) == 6
    assert names(items[2]) == names(plan[1, 2])
