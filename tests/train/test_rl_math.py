"""PPO and GRPO by hand: vector B in its four variants, whitening, groups, averages of weights."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from llmforge.train.rl.advantages import (
    gae,
    group_advantages,
    length_mask,
    penalised_rewards,
    steered_kl_coef,
    whiten,
)
from llmforge.train.rl.ema import WeightAverage
from llmforge.train.rl.objective import is_clipped, kl_estimates, policy_losses, value_losses

# Vector B: a prompt of 3 tokens, 3 actions, one pad behind them, a score of 6.5.
OLD = tensor([[-0.5, -1.2, -0.3, 0.0]])
REF = tensor([[-0.7, -1.0, -0.4, 0.0]])
NEW = OLD + tensor([[0.3, -0.1, 0.05, 0.0]])
VALUES = tensor([[0.2, 0.3, 0.4, 0.9]])
NEW_VALUES = tensor([[0.7, 0.2, 0.7, 0.0]])
SCORE, LENGTH = tensor([6.5]), tensor([3])
ACTIONS = length_mask(LENGTH, 4)

OURS = {
    0.1: ([-0.02, 0.02, 4.99], [4.336475, 4.4805, 4.59], [4.536475, 4.7805, 4.99], -4.694409, 9.560584),
    0.02: ([-0.004, 0.004, 4.998], [4.344495, 4.4721, 4.598], [4.544495, 4.7721, 4.998], -4.697887, 9.570557),
}
# What others make of the same replies: the score lands on the first pad, or the value at the pad leaks into A.
FAULTY = {
    "DeepSpeed-Chat": (
        [-0.02, 0.02, -0.01, 4.95], [4.1086, 4.2406, 4.3375, 4.05], [4.3086, 4.5406, 4.7375, 4.95], -4.442425, 8.539504,
    ),
    "llm3s": (
        [-0.004, 0.004, 4.998, -0.01], [4.3765, 4.5058, 4.6335, -0.91], [4.5765, 4.8058, 5.0335, -0.01],
        -4.733315, 9.718831,
    ),
}  # fmt: skip


def mean_over_actions(numbers):
    return float(numbers[ACTIONS].mean())


def losses(advantages, returns):
    policy = policy_losses(NEW, OLD, advantages, 0.2)
    return mean_over_actions(policy), mean_over_actions(value_losses(NEW_VALUES, VALUES, returns, 0.2))


@pytest.mark.parametrize("kl_coef", OURS)
def test_vector_b_with_the_true_length(kl_coef):
    rewards, advantages, returns, policy_loss, value_loss = OURS[kl_coef]
    got = penalised_rewards(OLD, REF, SCORE, LENGTH, kl_coef, clip=5.0)
    assert got[0].tolist() == pytest.approx([*rewards, 0.0], abs=1e-6)
    a, g = gae(got, VALUES * ACTIONS, 1.0, 0.95)
    assert a[0].tolist() == pytest.approx([*advantages, 0.0], abs=1e-5)
    assert g[0].tolist() == pytest.approx([*returns, 0.0], abs=1e-5)
    assert losses(a, g) == pytest.approx((policy_loss, value_loss), abs=1e-5)


@pytest.mark.parametrize("variant", FAULTY)
def test_vector_b_as_others_compute_it_differs_by_the_pad_alone(variant):
    rewards, advantages, returns, policy_loss, value_loss = FAULTY[variant]
    a, g = gae(tensor([rewards]), VALUES, 1.0, 0.95)
    assert a[0].tolist() == pytest.approx(advantages, abs=1e-4)
    assert g[0].tolist() == pytest.approx(returns, abs=1e-4)
    assert losses(a, g) == pytest.approx((policy_loss, value_loss), abs=1e-5)


def test_rows_of_other_lengths_do_not_change_a_row():
    old, ref = torch.cat([OLD, torch.full((1, 4), -2.0)]), torch.cat([REF, torch.full((1, 4), -1.0)])
    lengths, values = tensor([3, 4]), torch.cat([VALUES, VALUES])
    rewards = penalised_rewards(old, ref, tensor([6.5, -9.0]), lengths, 0.1, clip=5.0)
    assert rewards[1].tolist() == pytest.approx([0.1, 0.1, 0.1, -4.9])
    a, _ = gae(rewards, values * length_mask(lengths, 4), 1.0, 0.95)
    assert a[0].tolist() == pytest.approx([*OURS[0.1][1], 0.0], abs=1e-5)


def test_a_reply_of_one_token_has_the_score_at_that_token():
    rewards = penalised_rewards(OLD, REF, SCORE, tensor([1]), 0.1, clip=5.0)
    assert rewards[0].tolist() == pytest.approx([4.98, 0, 0, 0])


def test_gamma_and_lambda_discount_by_hand():
    a, g = gae(tensor([[0.0, 1.0]]), tensor([[0.5, 0.25]]), 0.5, 0.5)
    # delta_1 = 1 - 0.25; delta_0 = 0.5 * 0.25 - 0.5; A_0 = delta_0 + 0.25 * delta_1
    assert a[0].tolist() == pytest.approx([-0.1875, 0.75])
    assert g[0].tolist() == pytest.approx([0.3125, 1.0])


def test_the_gradient_of_a_clipped_ratio_is_zero_where_clipping_bites():
    new = tensor([0.5, 0.5, -0.5, -0.5, 0.0], requires_grad=True)
    advantages = tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    policy_losses(new, torch.zeros(5), advantages, 0.2).sum().backward()
    assert [bool(x) for x in new.grad] == [False, True, True, False, True]
    assert is_clipped(new, torch.zeros(5), 0.2).tolist() == [True, True, True, True, False]


def test_the_gradient_at_the_old_policy_is_that_of_the_plain_policy_gradient():
    new = tensor([-1.0, -2.0], requires_grad=True)
    policy_losses(new, new.detach(), tensor([3.0, -1.0]), 0.2).sum().backward()
    assert new.grad.tolist() == [-3.0, 1.0]


def test_whitened_numbers_have_deviation_one_and_padding_stays_zero():
    mask = tensor([[True, True, False], [True, False, False]])
    numbers = tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]])
    white = whiten(numbers, mask)
    assert white[mask].tolist() == pytest.approx([-1.224745, 0.0, 1.224745], abs=1e-4)
    assert whiten(numbers, mask, keep_mean=True)[mask].mean() == pytest.approx(2.0)
    assert not white[~mask].any()
    assert whiten(tensor([[7.0]]), tensor([[True]])).tolist() == [[7.0]]


def test_group_advantages_by_hand():
    rewards = tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert group_advantages(rewards, scale=False).tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4]
    # standard deviation sqrt(4 * 0.25 / 3)
    assert group_advantages(rewards)[0, 0] == pytest.approx(0.5 / (0.57735 + 1e-4), abs=1e-4)
    assert group_advantages(rewards)[1].tolist() == [0.0] * 4


def test_the_kl_estimate_is_right_on_average_and_never_negative():
    p, q = tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.5, 0.3])
    estimates = kl_estimates(p.log(), q.log())
    assert (estimates >= 0).all()
    assert (p * estimates).sum() == pytest.approx(float((p * (p / q).log()).sum()))
    assert kl_estimates(p.log(), p.log()).tolist() == [0.0] * 3


def test_the_average_of_weights_after_three_steps():
    average = WeightAverage({"w": tensor([1.0], dtype=torch.float64)}, 0.992)
    for _ in range(3):
        average.update({"w": tensor([2.0], dtype=torch.float64)})
    assert average.weights["w"].item() == pytest.approx(1.023808512, abs=1e-12)


def test_the_kl_coefficient_is_steered_towards_its_target():
    assert steered_kl_coef(0.1, kl=6.0, target=6.0, rows=100) == 0.1
    assert steered_kl_coef(0.1, kl=60.0, target=6.0, rows=100) == pytest.approx(0.1 * 1.002)
    assert steered_kl_coef(0.1, kl=0.0, target=6.0, rows=100) == pytest.approx(0.1 * 0.998)
