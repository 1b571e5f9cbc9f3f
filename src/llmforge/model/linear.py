"""Linear layers with a low-rank update, as one autograd function that keeps only what the products need.

peft's own LoRA layer keeps the dropout's copy of its input, casts, and adds two full-size results. Here the frozen
weight gets no gradient, the update rides on the large product (`addmm`), and nothing but the input and its rank-r
image is kept; an input that a norm made is not kept either, but made again from what the norm keeps. Taken only for a
plain floating-point `nn.Linear`; every other layer is called as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from llmforge.model.arena import empty_to_keep, keep
from llmforge.model.gemm import product

TOKEN_BLOCK = 512  # a block of the widest activations, some MB, stays in a CPU's cache


class Linear(NamedTuple):
    """y = x W^T + bias + scale (x A^T) B^T; `a` and `b` are None without an update."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    a: Tensor | None  # (rank, in)
    b: Tensor | None  # (out, rank)
    scale: float


def _drop(x: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    return x if kept is None else (x * kept).mul_(1 / (1 - dropout))


def multiply(
    x: Tensor, linear: Linear, kept: Tensor | None = None, dropout: float = 0.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The product (tokens, out), written to `out` if given, and the input's rank-r image (tokens, rank).

    `kept` (tokens, in) marks what dropout left of the update's input.
    """
    weight, bias, a, b, scale = linear
    y = product(x, weight, out)
    if bias is not None:
        y.add_(bias)
    if a is None or b is None:
        return y, None
    low = product(_drop(x, kept, dropout), a)
    return y.addmm_(low, b.t(), alpha=scale), low  # in place: a second result of this size would cost memory


def multiply_backward(
    grad: Tensor,
    x: Tensor,
    low: Tensor | None,
    linear: Linear,
    needs: tuple[bool, ...],
    d_x: Tensor | None,
    kept: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of one product.

    Args:
        grad: (tokens, out). x: (tokens, in).
        low: the rank-r image of x, or None to make it again.
        needs: which of (x, weight, bias, a, b) want a gradient.
        d_x: a gradient of x so far, added to in place; None starts one.

    Returns:
        The gradient of x, and those of weight, bias, a and b.
    """
    weight, bias, a, b, scale = linear
    d_weight = grad.t() @ x if needs[1] else None
    d_bias = grad.sum(0) if bias is not None and needs[2] else None
    d_a = d_b = image = None
    if a is not None and b is not None:
        image = product(grad, b.t()).mul_(scale)  # (tokens, rank)
        if needs[3]:
            d_a = product(image.t(), _drop(x, kept, dropout).t())
        if needs[4]:
            low = product(_drop(x, kept, dropout), a) if low is None else low
            d_b = product(low.t(), grad.t()).mul_(scale).t()  # this way round it is several times faster on a CPU
    if needs[0]:
        more = product(grad, weight.t())
        d_x = more if d_x is None else d_x.add_(more)
        if image is not None and a is not None:
            d_x = d_x.addmm_(image, a) if kept is None else d_x.add_(_drop(image @ a, kept, dropout))
    return d_x, [d_weight, d_bias, d_a, d_b]


class Normed(NamedTuple):
    """What a norm's result was made from: layers that take the result keep this, which the norm keeps anyway."""

    x: Tensor  # (..., hidden)
    weight: Tensor  # (hidden,)
    rms: Tensor  # (..., 1)

    @classmethod
    def behind(cls, x: Tensor) -> Normed | None:
        """What `x` was made from, or None when it is no norm's result or was written to since."""
        made_from, version = getattr(x, "made_from", (None, 0))
        return made_from if version == x._version else None

    def again(self) -> Tensor:
        """The norm's result."""
        return (self.x * self.rms).mul_(self.weight)


def _keep(ctx: Any, flat: Tensor, source: Normed | None, *others: Tensor | None) -> None:
    ctx.from_norm = source is not None
    ctx.save_for_backward(*((keep(flat), None, None) if source is None else source), *others)


def _kept(ctx: Any) -> tuple[Tensor, list[Any]]:
    x, weight, rms, *others = ctx.saved_tensors
    x = Normed(x, weight, rms).again() if ctx.from_norm else x
    return x.reshape(-1, x.shape[-1]), others


class _LoraLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Normed | None, dropout: float,
        weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        flat = x.reshape(-1, x.shape[-1])
        # One byte a number instead of a dropped copy of the input.
        kept = torch.rand_like(flat) >= dropout if dropout else None
        y, low = multiply(flat, Linear(weight, bias, a, b, scale), kept, dropout)
        low = keep(low) if low is not None else None
        _keep(ctx, flat, source, low, kept, weight, bias, a, b)
        ctx.scale, ctx.dropout, ctx.shape = scale, dropout, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple:
        flat, (low, kept, weight, bias, a, b) = _kept(ctx)
        grad = grad.reshape(-1, grad.shape[-1])
        linear = Linear(weight, bias, a, b, ctx.scale)
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:7])
        d_x, rest = multiply_backward(grad, flat, low, linear, needs, None, kept, ctx.dropout)
        return (d_x.view(ctx.shape) if d_x is not None else None), None, None, *rest, None


def _three(tensors: Any, scales: tuple[float, float, float]) -> list[Linear]:
    """Gate, up and down out of the flat arguments an autograd function takes."""
    groups = zip(tensors[0::4], tensors[1::4], tensors[2::4], tensors[3::4], scales, strict=True)
    return [Linear(weight, bias, a, b, scale) for weight, bias, a, b, scale in groups]


def _blocks(num_rows: int, block: int) -> Iterator[slice]:
    for first in range(0, num_rows, block):
        yield slice(first, min(first + block, num_rows))


class _GatedMlp(Function):
    """down(silu(gate(x)) * up(x)), keeping x and the two products: half of what autograd keeps.

    On a CPU a block of tokens at a time, so that what lies between two products stays in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Normed | None, scales: tuple[float, float, float], *tensors: Any
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        gate, up, down = _three(tensors, scales)
        g, u = (empty_to_keep(flat, len(flat), len(linear.weight)) for linear in (gate, up))
        y = flat.new_empty(len(flat), len(down.weight))
        for rows in _blocks(len(flat), _block_rows(flat)):
            multiply(flat[rows], gate, out=g[rows])
            multiply(flat[rows], up, out=u[rows])
            multiply(nn.functional.silu(g[rows]).mul_(u[rows]), down, out=y[rows])
        _keep(ctx, flat, source, g, u, *tensors)
        ctx.scales, ctx.shape = scales, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple:
        flat, (g, u, *tensors) = _kept(ctx)
        linears = _three(tensors, ctx.scales)
        needs = [ctx.needs_input_grad[3 + 4 * i : 7 + 4 * i] for i in range(3)]
        grad = grad.reshape(-1, grad.shape[-1])
        sums: list[list[Tensor | None]] = [[None] * 4 for _ in linears]
        d_flat = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        for rows in _blocks(len(flat), _block_rows(flat)):
            d_x, *parts = _mlp_backward(grad[rows], flat[rows], g[rows], u[rows], linears, needs, d_flat is not None)
            if d_flat is not None and d_x is not None:
                d_flat[rows] = d_x
            sums = [[_plus(old, new) for old, new in zip(*pair, strict=True)] for pair in zip(sums, parts, strict=True)]
        d_x = d_flat.view(ctx.shape) if d_flat is not None else None
        return d_x, None, None, *sums[0], *sums[1], *sums[2]


def _block_rows(flat: Tensor) -> int:
    return TOKEN_BLOCK if flat.device.type == "cpu" else max(len(flat), 1)


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if total is None or part is None else total.add_(part)


def _mlp_backward(
    grad: Tensor, x: Tensor, g: Tensor, u: Tensor, linears: list[Linear], needs: list[tuple[bool, ...]], wants_x: bool
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """Gradients of a block of tokens: of x, and of the weights of gate, up and down."""
    gate, up, down = linears
    s = torch.sigmoid(g)
    h = g * s  # silu(g)
    d_hidden, d_down = multiply_backward(grad, h * u, None, down, (True, *needs[2]), None)
    assert d_hidden is not None  # asked for in `needs`
    d_up_out = d_hidden * h
    # d silu / d g = s + silu(g) (1 - s)
    d_gate_out = d_hidden.mul_(u).mul_(s.add_(h.mul_(1 - s)))
    d_x, d_gate = multiply_backward(d_gate_out, x, None, gate, (wants_x, *needs[0]), None)
    d_x, d_up = multiply_backward(d_up_out, x, None, up, (wants_x, *needs[1]), d_x)
    return d_x, d_gate, d_up, d_down


class _RmsNorm(Function):
    """x / rms(x) * weight, keeping x and its scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Normed]:
        rms = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        made_from = Normed(keep(x), weight, keep(rms))
        ctx.save_for_backward(*made_from)
        return made_from.again(), made_from

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        x, weight, rms = ctx.saved_tensors
        grad, flat, scales = grads[0].reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]), rms.reshape(-1, 1)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        for rows in _blocks(len(flat), _block_rows(flat)):
            unit = flat[rows] * scales[rows]
            if d_weight is not None:
                d_weight += (grad[rows] * unit).sum(0)
            if d_x is not None:
                d_unit = torch.mul(grad[rows], weight, out=d_x[rows])
                mean = (d_unit * unit).mean(-1, keepdim=True)
                d_unit.sub_(unit.mul_(mean)).mul_(scales[rows])
        return (d_x.view(x.shape) if d_x is not None else None), d_weight, None


def lora_linear(x: Tensor, linear: Linear, dropout: float = 0.0) -> Tensor:
    """(..., in) -> (..., out); `dropout` is the share of the update's inputs set to 0."""
    return _LoraLinear.apply(x, Normed.behind(x), dropout, *linear)


def gated_mlp(x: Tensor, gate: Linear, up: Linear, down: Linear) -> Tensor:
    """(..., hidden) -> (..., hidden), silu between."""
    return _GatedMlp.apply(x, Normed.behind(x), (gate.scale, up.scale, down.scale), *gate[:4], *up[:4], *down[:4])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., hidden); `eps` is added to the mean square."""
    y, made_from = _RmsNorm.apply(x, weight, eps)
    if y.requires_grad:
        y.made_from = Normed(*(part.detach() for part in made_from)), y._version
    return y
