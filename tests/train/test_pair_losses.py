"""The losses over preferences, each against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.groups import fill_up, join_group
from llmforge.data.plan import lay_packed, lay_padded, lay_tree
from llmforge.train.pair_losses import (
    end_places,
    kto_losses,
    odds_ratio_losses,
    preference_losses,
    ranked_pairs,
    reward_losses,
    simpo_losses,
)

LN2 = math.log(2)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def sigma(x):
    return 1 / (1 + math.exp(-x))


# Vector A: two replies behind the prompt 5 6 7, padded on the right with 0, and a score at each place (9: no matter)

CHOSEN, REJECTED = [5, 6, 7, 8, 9, 2], [5, 6, 7, 10, 2]
SCORES = {"chosen": [0, 0, 0, 1.0, 0.5, 2.0, 9, 9], "rejected": [0, 0, 0, 0.2, 0.8, -1.0, 9, 9]}


def vector_a(fill=True):
    members = [Encoded(ids, [IGNORE] * 3 + ids[3:]) for ids in (CHOSEN, REJECTED)]
    batch = lay_padded([join_group(fill_up(members, 0) if fill else members, [1, 0])], [0], shift=0)
    targets = [int((batch.row == row).sum()) for row in (0, 1)]
    values = numbers(*SCORES["chosen"][3 : 3 + targets[0]], *SCORES["rejected"][3 : 3 + targets[1]])
    return values, batch


@pytest.mark.parametrize(("kind", "expected"), [("token", 0.424681), ("mean", 0.414370), ("end", 0.263282)])
def test_reward_loss_of_vector_a(kind, expected):
    values, batch = vector_a(fill=kind == "token")
    assert reward_losses(values, batch, ranked_pairs(batch), kind).tolist() == pytest.approx([expected], abs=1e-6)
    assert values[end_places(batch)].tolist() == [2.0, 0.8]


def test_the_three_reward_losses_are_what_they_say():
    values, batch = vector_a()
    pairs = ranked_pairs(batch)
    by_token = -sum(math.log(sigma(c - r)) for c, r in zip((1.0, 0.5, 2.0), (0.2, 0.8, -1.0), strict=True)) / 3
    assert reward_losses(values, batch, pairs, "token").item() == pytest.approx(by_token)
    assert reward_losses(values, batch, pairs, "mean").item() == pytest.approx(-math.log(sigma(3.5 / 3 - 0.5)))
    assert reward_losses(values, batch, pairs, "end").item() == pytest.approx(-math.log(sigma(2.0 - 0.8)))


def test_equal_rewards_cost_ln_2():
    _, batch = vector_a()
    for kind in ("token", "mean", "end"):
        values = torch.zeros(len(batch.target), dtype=torch.float64)
        assert reward_losses(values, batch, ranked_pairs(batch), kind).item() == pytest.approx(LN2)


@pytest.mark.parametrize("lay", [lay_padded, lay_packed, lay_tree])
def test_a_common_start_of_two_replies_is_not_compared(lay):
    prompt = list(range(20, 40))
    members = [Encoded(prompt + ids, [IGNORE] * 20 + ids) for ids in ([3, 4, 5, 2], [3, 4, 2])]
    batch = lay([join_group(fill_up(members, 0), [1, 0])], [0], shift=0)
    values = numbers(100, 100, 1.0, 3.0, -100, -100, 0.5, 2.0)  # from the third token on the replies differ
    expected = -(math.log(sigma(0.5)) + math.log(sigma(1.0))) / 2
    assert reward_losses(values, batch, ranked_pairs(batch), "token").item() == pytest.approx(expected)


def test_four_replies_scored_3_2_2_1_give_five_pairs():
    members = [Encoded([5, number], [IGNORE, number]) for number in (7, 8, 9, 10)]
    group = join_group(members, [2, 1, 1, 0])
    single = join_group([Encoded([5, 6], [IGNORE, 6]), Encoded([5, 4], [IGNORE, 4])], [0, 1])
    batch = lay_packed([group, single], [0, 1])
    pairs = ranked_pairs(batch)
    found = list(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True))
    assert found == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (5, 4)]


def test_the_same_group_twice_in_a_pass_gives_its_pairs_twice():
    group = join_group([Encoded([5, 6], [IGNORE, 6]), Encoded([5, 4], [IGNORE, 4])], [1, 0])
    assert np.stack(ranked_pairs(lay_packed([group], [0, 0]))).T.tolist() == [[0, 1], [2, 3]]


# Losses of pairs: the policy is 0.3 ahead of the reference on the chosen reply and 0.2 behind on the rejected one


def pair_loss(kind, beta=0.1, smoothing=0.0):
    logps = numbers(-1.7), numbers(-3.2), numbers(-2.0), numbers(-3.0)
    return preference_losses(kind, *logps, beta=beta, smoothing=smoothing).item()


def test_sigmoid_of_the_requirements():
    assert pair_loss("sigmoid") == pytest.approx(0.668460, abs=1e-6)
    assert pair_loss("sigmoid") == pytest.approx(-math.log(sigma(0.05)))


def test_label_smoothing_mixes_in_the_other_way_round():
    assert pair_loss("sigmoid", smoothing=0.1) == pytest.approx(
        -0.9 * math.log(sigma(0.05)) - 0.1 * math.log(sigma(-0.05))
    )


def test_hinge_and_ipo():
    assert pair_loss("hinge") == pytest.approx(1 - 0.05)
    assert pair_loss("hinge", beta=3.0) == 0
    assert pair_loss("ipo") == pytest.approx((0.5 - 5.0) ** 2)


def test_no_difference_costs_ln_2():
    same = numbers(-3.0)
    assert preference_losses("sigmoid", same, same, same, same, beta=0.7).item() == pytest.approx(LN2)


def test_simpo_by_hand():
    loss = simpo_losses(numbers(-0.5), numbers(-0.8), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(-math.log(sigma(2.0 * 0.3 - 0.5)))  # 0.644397
    assert loss.item() == pytest.approx(0.644397, abs=1e-6)


def test_orpo_by_hand():
    chosen, rejected = math.log(0.6), math.log(0.2)
    odds = math.log(0.6 / 0.4) - math.log(0.2 / 0.8)
    expected = -chosen - 0.1 * math.log(sigma(odds))
    assert odds_ratio_losses(numbers(chosen), numbers(rejected), beta=0.1).item() == pytest.approx(expected)


def test_orpo_stays_finite_where_the_policy_is_certain():
    chosen = numbers(-1e-12, 0.0).requires_grad_()
    losses = odds_ratio_losses(chosen, numbers(-1.0, -1.0), beta=0.1)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(chosen.grad).all()


def test_kto_by_hand():
    losses = kto_losses(numbers(0.3, -0.2), torch.tensor([True, False]), 0.1, beta=0.5)
    assert losses.tolist() == pytest.approx([1 - sigma(0.5 * 0.2), 1 - sigma(0.5 * 0.3)])
    assert losses.tolist() == pytest.approx([0.475021, 0.462570], abs=1e-6)


def test_kto_at_the_reference_costs_a_half():
    assert kto_losses(numbers(0.0, 0.0), torch.tensor([True, False]), 0.0, beta=0.1).tolist() == [0.5, 0.5]
