"""Replies that are written by contrastive search, one token each between two steps of the others."""

from __future__ import annotations

from typing import Any

import torch

from llmforge.infer.local.contrastive import ContrastiveSearch
from llmforge.infer.local.draw import Choice
from llmforge.infer.local.grammar import masks_of
from llmforge.infer.local.row import Row
from llmforge.infer.local.runner import Adapters
from llmforge.infer.local.sampler import Sampler


class Searches:
    """The rows that search, each with a cache of its own; nothing is shared between them."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id
        self.rows: list[Row] = []
        self._searches: dict[int, ContrastiveSearch] = {}  # by id of the row

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        self.rows.remove(row)
        self._searches.pop(id(row), None)

    @torch.no_grad()
    def choose(self, row: Row, model: Any, adapters: Adapters) -> Choice | None:
        """The row's next token; None where the model's logits are no numbers.

        Raises:
            RequestError: a model whose cache cannot be continued.
        """
        sampling = row.job.request.sampling
        with adapters.using([(row.adapter, 1)]):
            if (search := self._searches.get(id(row))) is None:
                k, alpha = sampling.top_k, sampling.penalty_alpha
                search = ContrastiveSearch(model, row.tokens, k=k, alpha=alpha, pad_id=self.pad_id)
                self._searches[id(row)] = search
            logits = search.logits[None].float()
            masks = masks_of([row.reply.matcher])
            sampler = Sampler([row.draw], logits.shape[1], logits.device)  # made anew: it has every token of the row
            scores = sampler.penalised(logits if masks is None else masks.apply(logits))[0]
            if not bool(torch.isfinite(scores.max())):
                return None
            chosen: list[Choice | None] = [Choice(search.take(scores))]
        return sampler.with_logprobs(chosen, logits)[0]
