"""Kahneman-Tversky optimisation: the policy learns from single replies that are called good or bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llmforge.config.schema import Recipe
from llmforge.data.build import DataSets
from llmforge.data.example import MARK
from llmforge.data.groups import DESIRED, UNRELATED
from llmforge.data.plan import Batch
from llmforge.errors import RecipeError
from llmforge.train.losses import LossSum, Stage, Start
from llmforge.train.pair_losses import kto_losses
from llmforge.train.reference import Reference, reply_lengths, reply_logprobs


class KtoStage(Stage):
    """The loss of each reply against the policy's KL from the reference, a mean over the replies of a step.

    The KL is estimated on prompts with other prompts' replies, over the whole optimizer step, so that it does not
    depend on how the step is cut into passes; it has no gradient.
    """

    aside = UNRELATED
    looks_ahead = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        tune = recipe.finetune
        self.beta, self.ftx = tune.pref_beta, tune.pref_ftx
        self.good, self.bad = tune.kto_chosen_weight, tune.kto_rejected_weight
        self.reference = Reference(recipe)
        self.kl = 0.0
        self.per_desired = 0.0  # replies of the step for each desired one

    def check(self, data: DataSets) -> None:
        marks = MARK - data.train.labels[data.train.offsets[:-1]]
        desired = int((marks == DESIRED).sum())
        if desired in (0, len(marks)):
            word = "true" if desired else "false"
            raise RecipeError(
                f"dataset: all {len(marks)} kto labels are {word}; kto learns from replies of both kinds. With desired "
                "replies alone use stage: sft"
            )

    def begin(self, start: Start) -> None:
        self.reference.prepare(start)

    def begin_step(self, model: nn.Module, batches: Sequence[Batch], add_up: Callable[..., list[float]]) -> None:
        gain = replies = desired = 0.0
        for batch in batches:
            aside = batch.aside
            assert aside is not None
            with torch.no_grad():
                found = reply_logprobs(model, aside) - self.reference(model, aside)
            if batch.num_rows:
                gain += float(found.sum())
                replies += batch.num_rows
                desired += float((batch.marks == DESIRED).sum())
        gain, replies, desired = add_up(gain, replies, desired)
        self.kl = max(gain / max(replies, 1), 0.0)
        self.per_desired = replies / max(desired, 1)

    def count(self, batch: Batch) -> int:
        return batch.num_rows

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        policy = reply_logprobs(model, batch)
        gain = policy - self.reference(model, batch)
        desired = torch.from_numpy(batch.marks == DESIRED).to(policy.device)
        weights = torch.where(desired, self.good, self.bad).to(policy)
        losses = weights * kto_losses(gain, desired, self.kl, beta=self.beta)
        if self.ftx:
            losses = losses - self.ftx * self.per_desired * desired * policy / reply_lengths(batch).to(policy)
        return LossSum(losses.sum(), *self.reported(policy.detach(), gain.detach(), batch))

    def reported(self, policy: Tensor, gain: Tensor, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Sums over desired and undesired replies, and their numbers."""
        metrics: dict[str, Tensor] = {"kl": gain.new_tensor(self.kl * batch.num_rows)}
        counts: dict[str, float] = {}
        for name, mine in (("chosen", batch.marks == DESIRED), ("rejected", batch.marks != DESIRED)):
            places = np.flatnonzero(mine)
            metrics[f"rewards/{name}"] = self.beta * gain[places].sum()
            metrics[f"logps/{name}"] = policy[places].sum()
            counts |= {f"rewards/{name}": float(len(places)), f"logps/{name}": float(len(places))}
        return metrics, counts
