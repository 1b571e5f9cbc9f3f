"""The clipped losses of PPO and GRPO, one number per action; the caller sums and divides. Pure mathematics."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_losses(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r = exp(logprobs - old_logprobs), any one shape.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratios = torch.exp(logprobs - old_logprobs)
    return torch.maximum(-advantages * ratios, -advantages * ratios.clamp(1 - clip, 1 + clip))


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """0.5 max((V - G)^2, (V' - G)^2), V' being V no further than `clip` from the old value, any one shape.

    Source: DeepSpeed-Chat's ppo_trainer.py, critic_loss_fn.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def is_clipped(logprobs: Tensor, old_logprobs: Tensor, clip: float) -> Tensor:
    """Where the ratio lies outside of 1 - clip to 1 + clip."""
    return (torch.exp(logprobs - old_logprobs) - 1).abs() > clip


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(policy | reference) in nats at each drawn token: unbiased, never negative, with a gradient.

    Source: Schulman 2020, "Approximating KL divergence", k3; Shao et al. 2024, eq. 4.
    """
    difference = ref_logprobs - logprobs
    return torch.exp(difference) - difference - 1
