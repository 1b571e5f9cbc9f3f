"""Reward model: a value head on a causal model learns to score the better one of two replies higher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from llmforge.data.plan import Batch
from llmforge.model.value_head import attach_value_head, has_value_head, load_value_head, new_value_head, state_values
from llmforge.train.losses import LossSum, Stage
from llmforge.train.pair_losses import end_places, ranked_pairs, reward_losses


class RmStage(Stage):
    """Ranking loss, a mean over the pairs of an optimizer step. A reply's score is the value at its last token."""

    shift = 0

    def extend(self, model: Any) -> None:
        """A new head, or the one beside the adapter that is continued."""
        given = self.recipe.model.adapter_name_or_path
        goes_on = given and not self.recipe.finetune.create_new_adapter and has_value_head(Path(given[-1]))
        head = load_value_head(model, Path(given[-1])) if goes_on else new_value_head(model)
        self.head = attach_value_head(model, head.requires_grad_(True))

    def count(self, batch: Batch) -> int:
        return len(ranked_pairs(batch).better)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        values = state_values(model, self.head, batch)
        pairs = ranked_pairs(batch)
        losses = reward_losses(values, batch, pairs, self.recipe.finetune.rm_loss)
        ends = values.detach()[end_places(batch)]
        better, worse = ends[pairs.better], ends[pairs.worse]
        metrics = {
            "accuracy": (better > worse).sum(),
            "margin": (better - worse).sum(),
            "rewards/chosen": better.sum(),
            "rewards/rejected": worse.sum(),
        }
        return LossSum(losses.sum(), metrics)
