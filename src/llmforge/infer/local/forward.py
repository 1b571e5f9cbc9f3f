"""A causal language model with the key-value cache of one left-padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from llmforge.infer.local.live import base_of
from llmforge.infer.protocol import RequestError


class CachedForward:
    """Runs a batch through the model, prompt first and then one token per row and step.

    Rows are padded on the left, so that all of them end at the same place in the cache; the mask hides the padding and
    the positions of each row count from its own first token.

    Raises:
        RequestError: the architecture has no key-value cache that can be continued, or the adapter puts tokens of its
            own before the prompt.
    """

    def __init__(self, model: Any, pad_id: int):
        self.model, self.pad_id = model, pad_id
        base = base_of(model)
        self.takes = inspect.signature(base.forward).parameters.keys()
        if "past_key_values" not in self.takes:
            raise RequestError(f"{type(base).__name__} keeps no key-value cache; the local engine cannot run it")
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise RequestError(f"the local engine cannot run a {model.active_peft_config.peft_type.value} adapter yet")
        self.device = base.get_input_embeddings().weight.device
        self.cache = DynamicCache(config=base.config)
        self.mask = torch.empty(0, 0, dtype=torch.long, device=self.device)  # (rows, tokens so far)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (rows, vocab) after the last token of each prompt."""
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        ids = [[self.pad_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        self.mask = torch.tensor(mask, dtype=torch.long, device=self.device)
        return self._forward(torch.tensor(ids, device=self.device))

    @torch.no_grad()
    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits (rows, vocab) after one more token per row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        return self._forward(torch.tensor(ids, device=self.device)[:, None])

    @property
    def can_select(self) -> bool:
        """Whether rows of the cache can be repeated and dropped (not with the states of linear attention)."""
        return all(hasattr(layer, "batch_select_indices") for layer in self.cache.layers)

    @torch.no_grad()
    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order; a row may be named several times."""
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]

    def _forward(self, ids: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"attention_mask": self.mask, "past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self.takes:
            positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = 1
        logits: Tensor = self.model(input_ids=ids, **inputs).logits[:, -1]
        return logits
