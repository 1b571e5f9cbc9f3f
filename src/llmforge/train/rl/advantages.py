"""From rewards to advantages: KL penalty, generalised advantage estimation, groups of replies. Pure mathematics.

Rows are padded on the right to (rows, actions); an action is a token the policy wrote, its end token included. What
lies behind a row's last action holds zeros, so that nothing behind it counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gather = Callable[[list[float]], list[float]]  # this rank's numbers -> those of all ranks
GROUP_EPSILON = 1e-4  # beside a group's standard deviation, as in TRL
WHITEN_EPSILON = 1e-8


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """(rows, width) True on the first `lengths[i]` places of row i."""
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def penalised_rewards(
    logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, lengths: Tensor, kl_coef: float, clip: float
) -> Tensor:
    """The reward of each action: minus the KL penalty, and at the last action the clipped score of the whole reply.

    Args:
        logprobs, ref_logprobs: (rows, actions) nats, of the policy that drew the reply and of the reference.
        scores: (rows,). lengths: (rows,) actions of each row, at least 1.

    Returns:
        (rows, actions), 0 behind the end.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 2, per token as in DeepSpeed-Chat's ppo_trainer.py; a reply's
    true length decides where the score goes, also when its end token is the padding token.
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * length_mask(lengths, logprobs.shape[1])
    rows = torch.arange(len(lengths), device=rewards.device)
    rewards[rows, lengths - 1] += scores.clamp(-clip, clip)
    return rewards


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

    Args:
        rewards, values: (rows, actions), both 0 behind a row's end.

    Returns:
        advantages and returns (advantage + value), (rows, actions); the value behind the last place counts as 0.

    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.
    """
    advantages = torch.zeros_like(rewards)
    after, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = advantages[:, t] = delta + gamma * lam * after
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(numbers: Tensor, mask: Tensor, gather: Gather = list, keep_mean: bool = False) -> Tensor:
    """`numbers` over their standard deviation where `mask` is True, 0 elsewhere; with mean 0 unless it is kept.

    Mean and deviation are those of all ranks, whose numbers `gather` brings together. Fewer than two numbers are
    returned as they are.
    """
    inside = torch.tensor(gather(numbers[mask].tolist()), dtype=numbers.dtype)
    if len(inside) < 2:
        return numbers * mask
    mean = inside.mean()
    white = (numbers - mean) * torch.rsqrt(inside.var(unbiased=False) + WHITEN_EPSILON)
    return (white + mean if keep_mean else white) * mask


def group_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """How much better each reply is than the others to its prompt.

    Args:
        rewards: (prompts, replies). scale: divide by the group's standard deviation.

    Returns:
        The same shape; 0 for a group whose replies are all alike.

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2 (GRPO); without `scale` Liu et al. 2025,
    arXiv:2503.20783 (Dr. GRPO).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + GROUP_EPSILON) if scale else centred


def steered_kl_coef(kl_coef: float, kl: float, target: float, rows: int, horizon: int = 10_000) -> float:
    """The KL coefficient after `rows` replies with a mean KL of `kl` nats, drawn towards `target`.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2, with TRL's horizon.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * rows / horizon)
