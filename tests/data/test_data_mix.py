import random

import numpy as np
import pytest

from llmforge.data.mix import mix_order
from llmforge.errors import RecipeError

NAMES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("concat", [0, 1, 2, 3, 4, 5, 6]),
        ("interleave_under", [0, 2, 1, 3]),
        ("interleave_over", [0, 2, 1, 3, 0, 4, 1, 5, 0, 6]),
        ("interleave_once", [0, 2, 1, 3, 4, 5, 6]),
    ],
)
def test_taking_turns_is_as_written_by_hand(strategy, order):
    assert mix_order([2, 5], strategy, [], seed=0).tolist() == order


@pytest.mark.parametrize("strategy", NAMES)
def test_orders_equal_those_of_the_datasets_library(strategy):
    from datasets import Dataset, interleave_datasets

    draw = random.Random(strategy)
    for seed in range(6):
        lengths = [draw.randrange(1, 30) for _ in range(draw.randrange(2, 4))]
        weights = [draw.random() + 0.1 for _ in lengths]
        probs = [w / sum(weights) for w in weights] if seed else None
        starts = np.cumsum([0, *lengths])
        sets = [Dataset.from_dict({"i": range(start, start + n)}) for start, n in zip(starts, lengths, strict=False)]
        theirs = interleave_datasets(sets, probs, seed=seed, stopping_strategy=NAMES[strategy])["i"]
        assert mix_order(lengths, strategy, probs or [], seed).tolist() == list(theirs)


def test_shares_come_out_as_asked():
    order = mix_order([50_000, 50_000], "interleave_under", [0.8, 0.2], seed=3)
    assert np.mean(order < 50_000) == pytest.approx(0.8, abs=0.01)


def test_one_data_set_stays_as_it_is():
    assert mix_order([4], "interleave_over", [], seed=0).tolist() == [0, 1, 2, 3]
    assert mix_order([], "concat", [], seed=0).tolist() == []


@pytest.mark.parametrize("probs", [[0.5, 0.6], [1.0], [0.0, 1.0], [-0.5, 1.5]])
def test_wrong_shares_are_refused(probs):
    with pytest.raises(RecipeError, match="interleave_probs: got"):
        mix_order([3, 3], "interleave_under", probs, seed=0)


def test_an_empty_data_set_cannot_be_interleaved():
    with pytest.raises(RecipeError, match="data set 2 of 2 has no rows"):
        mix_order([3, 0], "interleave_under", [], seed=0)
