"""How much memory a training pass takes, and so how many tokens one pass may hold.

Weights and what the process already holds are measured; gradients and optimizer states follow from the number of
trained weights; what one token leaves behind for the backward pass is counted in a short probe, storage by storage, so
it is right for any architecture, adapter and set of lean layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from llmforge.model.arena import Arena
from llmforge.model.head_loss import CHUNK_BYTES

PROBE_TOKENS = (16, 48)  # two lengths: the difference leaves out what does not grow with tokens
MOMENTARY = 0.15  # results and gradients that live for a moment, and holes between them, to what is kept (measured)
HEAD_CHUNKS = 4  # logits, their log-softmax, its gradient and one temporary
MIN_TOKENS, MAX_TOKENS = 256, 4096  # above, a pass gains next to nothing (measured on 2 CPU cores); below, it crawls
SHARE_OF_FREE = 0.6  # of free memory a run takes unless the recipe says otherwise: others live on the machine too
GB = 10**9


@dataclass(frozen=True)
class PassMemory:
    """Bytes of a training pass with T tokens: `fixed + per_token * T`.

    Attributes:
        held: measured: the process with its weights (CPU: resident, GPU: allocated).
        gradients, optimizer: of the trained weights.
        head: the largest chunk of logits with what is computed from it.
        per_token: what one token leaves for the backward pass, and what lives for a moment beside it.
        kept_per_token: the part of it that can lie in an arena.
    """

    held: int
    gradients: int
    optimizer: int
    head: int
    per_token: float
    kept_per_token: float

    @property
    def fixed(self) -> int:
        return self.held + self.gradients + self.optimizer + self.head

    def peak(self, tokens: int) -> int:
        """Bytes at the peak of a pass."""
        return int(self.fixed + self.per_token * tokens)

    def tokens_within(self, limit: int) -> int:
        """Tokens a pass may hold under `limit` bytes, between MIN_TOKENS and MAX_TOKENS."""
        if self.per_token == 0:  # nothing learns (a reference), so nothing is kept for a backward pass
            return MAX_TOKENS if self.fixed < limit else MIN_TOKENS
        return int(min(max((limit - self.fixed) / self.per_token, MIN_TOKENS), MAX_TOKENS))


def measure_pass(model: Any, forward: Callable[[int], Tensor]) -> PassMemory:
    """Measure a pass of `model` by two short probes.

    Args:
        forward: runs the model on so many tokens and returns hidden states that carry a gradient.
    """
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    (short, short_kept), (long, long_kept) = (_saved_bytes(forward, tokens, own) for tokens in PROBE_TOKENS)
    more = PROBE_TOKENS[1] - PROBE_TOKENS[0]
    trained = [p for p in model.parameters() if p.requires_grad]
    device = next(model.parameters()).device
    return PassMemory(
        held=held_bytes(device),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=sum(2 * 4 * p.numel() for p in trained),  # Adam's two moments in fp32
        head=HEAD_CHUNKS * CHUNK_BYTES,
        per_token=(1 + MOMENTARY) * (long - short) / more,
        kept_per_token=(long_kept - short_kept) / more,
    )


def _saved_bytes(forward: Callable[[int], Tensor], tokens: int, own: set[int]) -> tuple[int, int]:
    """Bytes kept for the backward pass, each storage once, the model's own weights left out; and those for an arena."""
    seen: dict[int, int] = {}
    arena = Arena()  # of no size: it only counts

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arena.open():
        states = forward(tokens)
    del states
    return sum(seen.values()), arena.wanted


def held_bytes(device: torch.device) -> int:
    """Bytes in use now: allocated on the card, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def memory_limit(device: torch.device, train_memory_gb: float | None) -> int:
    """Bytes a run may take on its device: what the recipe says, else a share of what is free now."""
    if train_memory_gb is not None:
        return int(train_memory_gb * GB)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return held_bytes(device) + int(0.9 * free)  # a card is not shared with a desktop of programs
    return held_bytes(device) + int(SHARE_OF_FREE * psutil.virtual_memory().available)
