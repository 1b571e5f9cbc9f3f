"""Direct preference optimisation and its relatives: the policy learns to prefer one of two replies, without a reward
model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llmforge.config.schema import Recipe
from llmforge.data.plan import Batch
from llmforge.train.losses import LossSum, Stage, Start
from llmforge.train.pair_losses import (
    PER_TOKEN,
    WITHOUT_REFERENCE,
    Pairs,
    kto_losses,
    odds_ratio_losses,
    preference_losses,
    ranked_pairs,
    simpo_losses,
)
from llmforge.train.reference import Reference, reply_lengths, reply_logprobs


class DpoStage(Stage):
    """A loss over pairs by `pref_loss`, a mean over the pairs of an optimizer step.

    The logged rewards are what the policy is trained towards: beta times the gain over the reference, or over nothing
    where the loss has no reference.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        tune = recipe.finetune
        self.kind, self.beta, self.ftx, self.gamma = tune.pref_loss, tune.pref_beta, tune.pref_ftx, tune.simpo_gamma
        self.smoothing = tune.dpo_label_smoothing
        self.reference = None if self.kind in WITHOUT_REFERENCE else Reference(recipe)
        self.looks_ahead = self.kind == "kto_pair"
        self.kl = (0.0, 0.0)  # kto_pair: of the chosen and of the rejected replies of the step

    def begin(self, start: Start) -> None:
        if self.reference is not None:
            self.reference.prepare(start)

    def begin_step(self, model: nn.Module, batches: Sequence[Batch], add_up: Callable[..., list[float]]) -> None:
        if not self.looks_ahead:
            return
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            with torch.no_grad():
                gain = (reply_logprobs(model, batch) - self.of_reference(model, batch)).cpu()
            pairs = ranked_pairs(batch)
            if batch.num_rows:
                sums += torch.stack([gain[pairs.better].sum(), gain[pairs.worse].sum(), gain.new_tensor(len(pairs[0]))])
        better, worse, count = add_up(*sums.tolist())
        self.kl = max(better / max(count, 1), 0.0), max(worse / max(count, 1), 0.0)

    def count(self, batch: Batch) -> int:
        return len(ranked_pairs(batch).better)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        policy = reply_logprobs(model, batch)
        reference = self.of_reference(model, batch)
        lengths = reply_lengths(batch).to(policy)
        if self.kind in PER_TOKEN:
            policy, reference, per_token = policy / lengths, reference / lengths, policy / lengths
        else:
            per_token = policy / lengths
        pairs = ranked_pairs(batch)
        losses = self.losses(policy, reference, pairs)
        if self.ftx:
            losses = losses - self.ftx * per_token[pairs.better]
        rewards = self.beta * (policy - reference).detach()
        better, worse = rewards[pairs.better], rewards[pairs.worse]
        metrics = {
            "rewards/chosen": better.sum(),
            "rewards/rejected": worse.sum(),
            "rewards/accuracies": (better > worse).sum(),
            "rewards/margins": (better - worse).sum(),
            "logps/chosen": policy.detach()[pairs.better].sum(),
            "logps/rejected": policy.detach()[pairs.worse].sum(),
        }
        return LossSum(losses.sum(), metrics)

    def losses(self, policy: Tensor, reference: Tensor, pairs: Pairs) -> Tensor:
        """(pairs,) by `pref_loss`."""
        chosen, rejected = policy[pairs.better], policy[pairs.worse]
        if self.kind == "orpo":
            return odds_ratio_losses(chosen, rejected, beta=self.beta)
        if self.kind == "simpo":
            return simpo_losses(chosen, rejected, beta=self.beta, gamma=self.gamma)
        ref_chosen, ref_rejected = reference[pairs.better], reference[pairs.worse]
        if self.kind == "kto_pair":  # each reply is measured against the other side's KL, as in TRL
            of_chosen, of_rejected = self.kl
            good, bad = torch.ones_like(chosen, dtype=torch.bool), torch.zeros_like(chosen, dtype=torch.bool)
            return 0.5 * (
                kto_losses(chosen - ref_chosen, good, of_rejected, beta=self.beta)
                + kto_losses(rejected - ref_rejected, bad, of_chosen, beta=self.beta)
            )
        return preference_losses(
            self.kind, chosen, rejected, ref_chosen, ref_rejected, beta=self.beta, smoothing=self.smoothing
        )

    def of_reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """(num_rows,) log-probabilities under the reference; zeros where the loss has none."""
        if self.reference is None:
            return torch.zeros(len(batch.marks), dtype=torch.float64, device=next(model.parameters()).device)
        return self.reference(model, batch)
