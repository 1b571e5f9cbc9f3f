"""Proximal policy optimisation: replies drawn from the actor, rewarded, and learned from with a critic beside it."""

from __future__ import annotations

from torch import nn

from llmforge.data.plan import Batch
from llmforge.train.losses import LossSum
from llmforge.train.rl.advantages import Gather, gae, penalised_rewards, steered_kl_coef, whiten
from llmforge.train.rl.experience import Experience
from llmforge.train.rl.objective import policy_losses, value_losses
from llmforge.train.rl.stage import RolloutStage
from llmforge.train.rl.state import RolloutState


class PpoStage(RolloutStage):
    """Clipped losses of actor and critic, each a mean over all actions of an optimizer step.

    Both go through one backward pass; their weights have nothing in common, so the sum changes neither.
    """

    has_critic = True
    default_replies = 1
    needs_reference = True

    @property
    def ema_decay(self) -> float:
        return self.rl.ppo_ema_decay

    def critic_rate(self, learning_rate: float) -> float:
        return self.rl.critic_learning_rate or learning_rate

    def first_state(self) -> RolloutState:
        return RolloutState(kl_coef=self.rl.ppo_kl_coef)

    def judge(self, experience: Experience, state: RolloutState, gather: Gather) -> None:
        rl, numbers, mask = self.rl, experience.numbers, experience.mask
        scores = experience.rewards
        if rl.ppo_score_norm:
            scores = (scores - state.mean) / state.deviation
        logprobs, reference = (experience.padded(numbers[name]) for name in ("logprobs", "ref_logprobs"))
        lengths = experience.lengths
        rewards = penalised_rewards(logprobs, reference, scores, lengths, state.kl_coef, rl.ppo_reward_clip)
        if rl.ppo_whiten_rewards:
            rewards = whiten(rewards, mask, gather, keep_mean=True)
        values = experience.padded(numbers["values"])
        advantages, returns = gae(rewards, values, rl.ppo_gamma, rl.ppo_lambda)
        if rl.ppo_whiten_advantages:
            advantages = whiten(advantages, mask, gather)
        numbers["advantages"], numbers["returns"] = experience.flat(advantages), experience.flat(returns)
        if rl.ppo_target is not None:
            kl = gather(experience.sum_per_reply(numbers["logprobs"] - numbers["ref_logprobs"]).tolist())
            state.kl_coef = steered_kl_coef(state.kl_coef, sum(kl) / len(kl), rl.ppo_target, len(kl))

    def count(self, batch: Batch) -> int:
        return len(batch.target)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        rl = self.rl
        got = model(batch, entropy=rl.ppo_entropy_coef > 0)
        device = got.logprobs.device
        old, advantages, old_values, returns = (
            self.now(name, batch, device) for name in ("logprobs", "advantages", "values", "returns")
        )
        policy = policy_losses(got.logprobs, old, advantages, rl.ppo_clip).sum()
        value = value_losses(got.values, old_values, returns, rl.ppo_value_clip).sum()
        metrics = {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "clip_share": self.clipped(got.logprobs, old),
        }
        loss = policy + value
        if got.entropy is not None:
            entropy = got.entropy.sum()
            loss = loss - rl.ppo_entropy_coef * entropy
            metrics["entropy"] = entropy.detach()
        return LossSum(loss, metrics)
