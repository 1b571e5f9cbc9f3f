"""Continued pre-training: the model learns every token of plain texts, several texts to a sequence."""

from __future__ import annotations

from llmforge.config.schema import Recipe
from llmforge.train.stages.sft import SftStage


class PtStage(SftStage):
    """Cross-entropy of all tokens. The rows come without prompts, so the loss is the one of supervised fine-tuning."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.packs = recipe.data.packing is not False
