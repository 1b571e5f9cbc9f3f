"""A value head: one number for each token, read from the hidden states of a causal language model.

A reward model is a base, an adapter and a head; PPO's critic is the same. The head is a matrix (1, H) without bias in
fp32, a file of its own beside the adapter, and while it learns a submodule of the model, so that optimizer, DDP,
DeepSpeed and checkpoints see it like any other weight.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmforge.data.plan import Batch
from llmforge.errors import RecipeError
from llmforge.model.forward import causal_lm, token_states

FILE = "value_head.safetensors"
KEY = "value_head.weight"
NAME = "value_head"  # the submodule of the causal language model


class ValueHead(nn.Linear):
    """Hidden states (..., H) -> values (...,) in fp32 or better."""

    def __init__(self, hidden_size: int, device: torch.device | None = None):
        super().__init__(hidden_size, 1, bias=False, device=device)
        # The states come out of the last norm with numbers of about 1, so values start with a spread of about 1
        # (Stiennon et al. 2020, arXiv:2009.01325, appendix C).
        nn.init.normal_(self.weight, std=(hidden_size + 1) ** -0.5)

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.to(self.weight.dtype)).squeeze(-1)


def new_value_head(model: Any) -> ValueHead:
    """A head for this model, drawn from torch's generator, on the device of the model's output head."""
    head = causal_lm(model).get_output_embeddings()
    return ValueHead(_hidden_size(model), head.weight.device)


def attach_value_head(model: Any, head: ValueHead) -> ValueHead:
    """Make the head a submodule of the (wrapped) model, so that it learns and is exchanged between ranks with it."""
    causal_lm(model).add_module(NAME, head)
    return head


def value_head_of(model: Any) -> ValueHead | None:
    """The head that was attached to the model."""
    return getattr(causal_lm(model), NAME, None)


def state_values(model: nn.Module, head: ValueHead, batch: Batch) -> Tensor:
    """Values (N,) at the states of a batch, in the order of `batch.state`.

    A batch laid out with `shift=0` has the states of the labelled tokens themselves; `values_at` takes any places.
    """
    return head(token_states(model, batch))


def values_at(model: nn.Module, head: ValueHead, batch: Batch, places: np.ndarray) -> Tensor:
    """Values at flat positions (N,) of the batch's input_ids."""
    places = np.asarray(places, np.int64)
    return state_values(model, head, replace(batch, state=places, target=np.zeros_like(places)))


def save_value_head(head: ValueHead | Tensor, folder: Path) -> None:
    """Write a head, or its weight (1, H), in fp32 beside the adapter's."""
    weight = head.weight if isinstance(head, ValueHead) else head
    save_file({KEY: weight.detach().float().cpu().contiguous()}, Path(folder) / FILE)


def has_value_head(folder: Path) -> bool:
    """Whether a run or an adapter is a reward model (or a critic)."""
    return (Path(folder) / FILE).is_file()


def load_value_head(model: Any, folder: Path) -> ValueHead:
    """The head saved in `folder`, for this model; not attached, and frozen.

    Raises:
        RecipeError: no head there, a damaged file, or one for another hidden size.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise RecipeError(f"{folder} has no {FILE}, so it is no reward model; train one with stage: rm")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RecipeError(f"{path}: damaged ({error})") from None
    if KEY not in tensors:
        raise RecipeError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}, expected {KEY}")
    weight, size = tensors[KEY], _hidden_size(model)
    if weight.shape != (1, size):
        raise RecipeError(f"{path} is for hidden states of {weight.shape[-1]} numbers; this base has {size}")
    head = new_value_head(model).requires_grad_(False)
    head.weight.data.copy_(weight)
    return head


def _hidden_size(model: Any) -> int:
    """Numbers of a hidden state as the output head sees it, which is not always config.hidden_size."""
    return causal_lm(model).get_output_embeddings().in_features
