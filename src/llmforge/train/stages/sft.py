"""Supervised fine-tuning: the model learns to write the assistant's turns."""

from __future__ import annotations

from torch import nn

from llmforge.config.schema import Recipe
from llmforge.data.plan import Batch
from llmforge.model.forward import token_losses, token_scores
from llmforge.train.losses import LossSum, Stage


class SftStage(Stage):
    """Cross-entropy of the supervised tokens, a mean over all of them in an optimizer step."""

    per_token = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.packs = bool(recipe.data.packing)
        self.label_smoothing = recipe.train.label_smoothing_factor

    def count(self, batch: Batch) -> int:
        return len(batch.target)

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        return LossSum(token_losses(model, batch, self.label_smoothing).sum())

    def score(self, model: nn.Module, batch: Batch) -> LossSum:
        losses, right = token_scores(model, batch)
        return LossSum(losses.double().sum(), {"accuracy": right.sum()} if self.recipe.eval.compute_accuracy else {})
