"""Group relative policy optimisation: several replies to a prompt, each judged against the others; no critic."""

from __future__ import annotations

import torch
from torch import nn

from llmforge.config.schema import Recipe
from llmforge.data.plan import Batch
from llmforge.errors import RecipeError
from llmforge.train.losses import LossSum
from llmforge.train.rl.advantages import Gather, group_advantages
from llmforge.train.rl.experience import Experience
from llmforge.train.rl.objective import kl_estimates, policy_losses
from llmforge.train.rl.stage import RolloutStage
from llmforge.train.rl.state import RolloutState


class GrpoStage(RolloutStage):
    """The clipped policy loss with the same advantage at all tokens of a reply, and a KL term where it is asked.

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 3; `grpo_loss: token` is the mean of Yu et al. 2025,
    arXiv:2503.14476 (DAPO), eq. 8.
    """

    has_critic = False
    default_replies = 8

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        if self.replies < 2:
            raise RecipeError("num_generations: 1 reply has no others to be judged against; stage grpo needs 2 or more")

    @property
    def needs_reference(self) -> bool:
        return self.rl.grpo_kl_coef > 0

    def judge(self, experience: Experience, state: RolloutState, gather: Gather) -> None:
        groups = experience.rewards.reshape(-1, self.replies)
        advantages = group_advantages(groups, self.rl.grpo_scale_rewards).reshape(-1)
        experience.numbers["advantages"] = advantages.repeat_interleave(experience.lengths)

    def count(self, batch: Batch) -> int:
        return batch.num_rows if self.rl.grpo_loss == "reply" else len(batch.target)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        rl = self.rl
        got = model(batch, entropy=rl.ppo_entropy_coef > 0)
        device = got.logprobs.device
        old, advantages = self.old_logprobs(got.logprobs, batch), self.now("advantages", batch, device)
        losses = policy_losses(got.logprobs, old, advantages, rl.ppo_clip)
        row = torch.from_numpy(batch.row).to(device)
        weights = torch.ones_like(losses)
        if rl.grpo_loss == "reply":
            lengths = torch.bincount(row, minlength=batch.num_rows)
            weights = weights / lengths[row]
        metrics = {"policy_loss": (losses * weights).sum().detach()}
        if self.needs_reference:
            kl = kl_estimates(got.logprobs, self.now("ref_logprobs", batch, device))
            losses = losses + rl.grpo_kl_coef * kl
            metrics["kl_loss"] = (kl * weights).sum().detach()
        if got.entropy is not None:
            losses = losses - rl.ppo_entropy_coef * got.entropy
            metrics["entropy"] = (got.entropy * weights).sum().detach()
        beyond = self.clipped(got.logprobs, old)
        metrics["clip_share"] = beyond * self.count(batch) / max(len(batch.target), 1)
        return LossSum((losses * weights).sum(), metrics)
