"""Attention over a forest of shared prefixes: one flat row of tokens, each seeing its path and nothing else.

`use_forest_attention` puts it behind a model's own attention through transformers' AttentionInterface: a forward pass
that is given `forest=ForestMask` runs it, any other one runs the attention the model had. No library code is patched.

Two forms, equal in value and gradient:
- `segment_attention`, on a CPU: flash attention segment by segment. A segment attends causally to itself; the rest of
  its subtree then attends densely to it; the parts are merged by their log-sum-exp. No mask is ever made.
- `masked_attention`, on any device: products under the forest's mask, a chunk of queries at a time. It also serves
  layers with a sliding window that bites, soft-capped scores, and heads whose values are narrower than their keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from llmforge.model.arena import empty_to_keep, keep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOREST = "forge_forest_over_"  # + the name of the attention the model had
MASK_CHUNK = 512  # queries per chunk of the masked form: a mask has 512 x T entries

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass
class ForestMask:
    """Who sees whom in a flat row.

    Attributes:
        segments: (start, end, subtree end) of each segment, depth first.
        positions: (T,) place of each token on its path, for sliding windows.
    """

    segments: list[tuple[int, int, int]]
    positions: np.ndarray
    _ends: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, segments: np.ndarray, positions: np.ndarray) -> ForestMask:
        """From a batch's `segments` (S, 3) and `position_ids`."""
        return cls([(start, end, below) for start, end, below in segments.tolist()], positions.reshape(-1))

    @property
    def longest(self) -> int:
        """Tokens on the longest path."""
        return int(self.positions.max()) + 1 if len(self.positions) else 0

    def visible(self, first: int, last: int, window: int | None, device: torch.device) -> Tensor:
        """Mask (last - first, last): True where query first + i sees key j.

        Key j is seen by the queries after it up to the end of its segment's subtree: a depth-first row holds exactly
        the key's descendants there.
        """
        if self._ends is None or self._ends.device != device:
            ends = np.zeros(len(self.positions), np.int64)
            for start, end, subtree_end in self.segments:
                ends[start:end] = subtree_end
            self._ends = torch.from_numpy(ends).to(device)
        queries = torch.arange(first, last, device=device)[:, None]
        keys = torch.arange(last, device=device)[None]
        seen = (keys <= queries) & (queries < self._ends[None, :last])
        if window is not None:
            places = torch.from_numpy(self.positions[:last]).to(device)
            seen &= places[first:last, None] - places[None] < window
        return seen


class _SegmentAttention(Function):
    """In the kernels' batch dimension stand the query heads of one key head, so keys and values need no copies."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: list, scale: float) -> Tensor:
        heads, length, width = query.shape
        kv_heads = key.shape[0]
        group = heads // kv_heads
        # Token by token in memory, as the output projection wants it: what that keeps for its backward pass and what is
        # kept here are then the same memory.
        out = empty_to_keep(query, length, heads, width).transpose(0, 1)
        lse = empty_to_keep(query, heads, length, dtype=torch.promote_types(query.dtype, torch.float32))
        query, key, value = keep(query), keep(key), keep(value)
        for start, end, _ in segments:
            own = slice(start, end)
            part, part_lse = _flash(
                _grouped(query[:, own], kv_heads), _shared(key[:, own], group), _shared(value[:, own], group),
                0.0, True, scale=scale,
            )  # fmt: skip
            _grouped(out[:, own], kv_heads).copy_(part)
            _grouped(lse[:, own], kv_heads).copy_(part_lse)
        for start, end, below in segments:
            if below == end:
                continue
            part, part_lse = _flash(
                _grouped(query[:, end:below], kv_heads), _shared(key[:, start:end], group),
                _shared(value[:, start:end], group), 0.0, False, scale=scale,
            )  # fmt: skip
            here, old = _grouped(out[:, end:below], kv_heads), _grouped(lse[:, end:below], kv_heads)
            new = torch.logaddexp(old, part_lse)
            here.mul_(torch.exp(old - new)[..., None].to(here.dtype))
            here.addcmul_(part, torch.exp(part_lse - new)[..., None].to(here.dtype))
            old.copy_(new)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        query, key, value, out, lse = ctx.saved_tensors
        kv_heads = key.shape[0]
        group = query.shape[0] // kv_heads
        grad = grads[0]
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))

        def part(seen: slice, by: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            a, b, c = _flash_backward(
                _grouped(grad[:, by], kv_heads), _grouped(query[:, by], kv_heads), _shared(key[:, seen], group),
                _shared(value[:, seen], group), _grouped(out[:, by], kv_heads), _grouped(lse[:, by], kv_heads),
                0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            return a, b.sum(0), c.sum(0)

        for start, end, _ in ctx.segments:
            own = slice(start, end)
            a, dk[:, own], dv[:, own] = part(own, own, True)
            _grouped(dq[:, own], kv_heads).copy_(a)
        for start, end, below in ctx.segments:
            if below == end:
                continue
            a, b, c = part(slice(start, end), slice(end, below), False)
            _grouped(dq[:, end:below], kv_heads).add_(a)
            dk[:, start:end] += b
            dv[:, start:end] += c
        return dq, dk, dv, None, None


def _grouped(of_heads: Tensor, kv_heads: int) -> Tensor:
    """(heads, ...) seen as (heads of a group, key heads, ...)."""
    return of_heads.unflatten(0, (kv_heads, -1)).transpose(0, 1)


def _shared(of_key_heads: Tensor, group: int) -> Tensor:
    """(key heads, ...) seen as (group, key heads, ...), once in memory."""
    return of_key_heads.expand(group, *of_key_heads.shape)


def segment_attention(query: Tensor, key: Tensor, value: Tensor, forest: ForestMask, scale: float) -> Tensor:
    """Exact attention along the forest's paths, segment by segment, on a CPU.

    Args:
        query: (heads, T, width). key, value: (key heads, T, width).
        scale: factor of the scores, usually width ** -0.5.

    Returns:
        (heads, T, width).
    """
    return _SegmentAttention.apply(query, key, value, forest.segments, scale)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestMask,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int = MASK_CHUNK,
) -> Tensor:
    """The same under an explicit mask, `chunk` queries at a time, on any device.

    Args:
        query: (heads, T, width). key: (key heads, T, width). value: (key heads, T, value width).
        window: a token sees the last `window` tokens of its path only.
        softcap: scores are squeezed into (-softcap, softcap) by tanh (Gemma 2).

    Returns:
        (heads, T, value width).
    """
    heads, length = query.shape[:2]
    group = heads // key.shape[0]
    parts = []
    for first in range(0, length, chunk):
        last = min(first + chunk, length)
        seen = forest.visible(first, last, window, query.device)
        q, k, v = query[:, first:last], key[:, :last], value[:, :last]
        if softcap is None:
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            parts.append(F.scaled_dot_product_attention(q[None], k[None], v[None], seen, scale=scale)[0])
        else:
            parts.append(checkpoint(_capped, q, k, v, seen, scale, softcap, use_reentrant=False))
    return torch.cat(parts, 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention with soft-capped scores, which no fused kernel of torch offers; (heads, queries, value width)."""
    grouped = query.unflatten(0, (key.shape[0], -1))  # (key heads, group, queries, width)
    scores = torch.einsum("kgqd,kld->kgql", grouped, key) * scale
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, -torch.inf)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return torch.einsum("kgql,kld->kgqd", weights, value).flatten(0, 1)


# Behind a model

_no_mask: ContextVar[bool] = ContextVar("forge_no_mask", default=False)


def supports_forest(model: PreTrainedModel) -> str | None:
    """None when the model can run a forest, else the reason in words."""
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not use transformers' attention interface"
    if not getattr(model.config.get_text_config(), "is_causal", True):
        return f"{name} is not causal"
    if any("sinks" in key for key, _ in model.named_parameters()):
        return f"{name} has attention sinks"
    return None


def use_forest_attention(model: PreTrainedModel) -> None:
    """Put the forest's attention before the model's own; forward passes without `forest=` stay as they are."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config
    own = config._attn_implementation
    if runs_forest(model):
        return
    name = FOREST + own
    own_mask = ALL_MASK_ATTENTION_FUNCTIONS[own]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        forest = options.pop("forest", None)
        if forest is None:
            eager = _eager_attention_of(module)
            return ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)(module, query, key, value, mask, **options)
        return _attend(query, key, value, forest, options), None

    def mask(*args: Any, **options: Any) -> Tensor | None:
        return None if _no_mask.get() else own_mask(*args, **options)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    model.set_attn_implementation(name)


def runs_forest(model: Any) -> bool:
    """Whether `use_forest_attention` was called on the model."""
    return str(model.config._attn_implementation).startswith(FOREST)


def _eager_attention_of(module: nn.Module) -> Any:
    """The plain attention function of the module's own file, which `eager` means there."""
    import sys

    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _attend(query: Tensor, key: Tensor, value: Tensor, forest: ForestMask, options: dict[str, Any]) -> Tensor:
    """(1, heads, T, width) -> (1, T, heads, value width), as the interface wants it."""
    if options.get("dropout"):
        raise ValueError("attention dropout is not available with shared prefixes; set batching: padded")
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    window, softcap = options.get("sliding_window"), options.get("softcap")
    window = window if window is not None and window < forest.longest else None
    q, k, v = query[0], key[0], value[0]
    plain = window is None and softcap is None and v.shape[-1] == q.shape[-1]
    if plain and q.device.type == "cpu":
        out = segment_attention(q, k, v, forest, scale)
    else:
        out = masked_attention(q, k, v, forest, scale, window=window, softcap=softcap)
    return out.transpose(0, 1)[None]


@contextlib.contextmanager
def no_mask() -> Iterator[None]:
    """While a forest goes through the model, no dense mask is made for it."""
    token = _no_mask.set(True)
    try:
        yield
    finally:
        _no_mask.reset(token)
