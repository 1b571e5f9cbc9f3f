"""Scores of generated replies during an evaluation, with the same core and the same metrics as `forge-cli predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmforge.config.names import CORES
from llmforge.config.schema import Recipe
from llmforge.data.prompts import prompt_row
from llmforge.errors import RecipeError
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds
from llmforge.metrics.scores import check_metrics, score

if TYPE_CHECKING:
    from llmforge.data.example import Example
    from llmforge.model.loading import LoadedModel


class ReplyScores:
    """Generates a reply for every held-out row and scores it against the row's own.

    Replies are greedy, so that two evaluations differ by the weights alone.
    """

    def __init__(self, recipe: Recipe, loaded: LoadedModel, examples: Mapping[str, Sequence[Example]]):
        if any(example.text is not None for rows in examples.values() for example in rows):
            raise RecipeError("predict_with_generate: plain texts have no reply to generate; it is for stage sft")
        check_metrics(recipe.eval.metrics, recipe.eval)
        self.recipe, self.loaded = recipe, loaded
        everything = [example for rows in examples.values() for example in rows]
        self.rows = [prompt_row(i, e, loaded.tokenizer, loaded.template) for i, e in enumerate(everything)]

    def __call__(
        self, model: nn.Module, gather: Callable[[list[Any]], list[Any]], rank: int, ranks: int
    ) -> dict[str, float]:
        """Scores over all rows; each rank generates its share and `gather` joins them."""
        options = self.recipe.generate
        core = CORES.get("local")(
            model, self.loaded.tokenizer, self.loaded.template, max_rows=self.recipe.train.per_device_eval_batch_size
        )
        sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=0.0)
        mine = list(range(rank, len(self.rows), ranks))
        training = model.training
        model.eval()
        with torch.no_grad():
            requests = [GenerateRequest("", TokenIds(tuple(self.rows[i].prompt_ids)), sampling) for i in mine]
            replies = [(i, reply[0].text) for i, reply in zip(mine, core.generate_all(requests), strict=True)]
        model.train(training)
        texts = dict(gather(replies))
        labels = [row.label for row in self.rows]
        return score(self.recipe.eval.metrics, [texts[i] for i in range(len(labels))], labels, self.recipe.eval).values
