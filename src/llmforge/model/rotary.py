"""Rotary positions (Su et al. 2021, RoFormer) as one autograd function, behind an attention layer's own forward.

The library's form makes four results of the queries' size and their gradients, each a way through memory; this one
makes one, where the forest's attention keeps it. Heads are turned by halves, as Llama's family does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from llmforge.model.arena import empty_to_keep

NAME = "apply_rotary_pos_emb"  # what the library's modeling files call it
Rotary = Callable[..., tuple[Tensor, Tensor]]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, back: bool = False) -> Tensor:
    """out = x cos + (-second half of x, first half of x) sin; `back`: its transpose, which takes gradients back."""
    half = x.shape[-1] // 2
    sines = sin.split(half, -1)
    to_first, to_second = reversed(sines) if back else sines
    sign = -1 if back else 1
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], to_first, value=-sign)
    out[..., half:].addcmul_(x[..., :half], to_second, value=sign)
    return out


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, empty_to_keep(x, *x.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        cos, sin = ctx.saved_tensors
        grad = grads[0]
        # Token by token in memory, as the projection behind it reads it.
        out = torch.empty_like(grad.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        return _turn(grad, cos, sin, out, back=True), None, None


def rotary(own: Rotary, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any, **options: Any) -> Any:
    """Queries and keys, turned; by the library's `own` form where this one does not fit.

    Args:
        query: (batch, heads, tokens, width). key: (batch, key heads, tokens, width).
        cos, sin: (batch or 1, tokens, width), of no gradient.
    """
    fits = (
        not args
        and not options
        and cos.dim() == 3
        and query.dim() == key.dim() == 4
        and query.shape[-1] == key.shape[-1] == cos.shape[-1]
        and query.dtype == key.dtype == cos.dtype
        and query.dtype in (torch.float32, torch.float64)
        and not cos.requires_grad
    )
    if not fits:
        return own(query, key, cos, sin, *args, **options)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _Rotary.apply(query, cos, sin), _Rotary.apply(key, cos, sin)


def with_lean_rotary(forward: Any) -> FunctionType | None:
    """The forward of an attention class with `rotary` in place of the library's, or None where that is another formula.

    The function is a copy: the library's module keeps its own.
    """
    if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(NAME)
    if own is None or not _agrees(own):
        return None
    names = {**forward.__globals__, NAME: partial(rotary, own)}
    lean = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    lean.__kwdefaults__ = forward.__kwdefaults__
    return lean


@torch.no_grad()
def _agrees(own: Rotary) -> bool:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 5, 8, generator=draw, dtype=torch.float64) for heads in (2, 1))
    cos, sin = (torch.randn(2, 5, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    try:
        expected = own(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # other arguments, other shapes: another formula
        return False
    got = rotary(own, query, key, cos, sin)
    return all(mine.shape == his.shape and torch.allclose(mine, his) for mine, his in zip(got, expected, strict=True))
