"""The last hidden states of a forward pass, seen on their way to the output head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llmforge.infer.local.live import base_of


@dataclass
class Seen:
    """What the pass computed: (rows, tokens, H), after the model's last norm."""

    states: Tensor


@contextmanager
def last_states(model: Any) -> Iterator[Seen]:
    """Inside, each forward pass of the model leaves its last hidden states in what this gives."""
    inner: nn.Module = base_of(model).base_model  # the transformer without its head
    seen = Seen(Tensor())

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.states = output[0]

    handle = inner.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
