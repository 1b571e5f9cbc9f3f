"""Linear layers with a low-rank update, as one autograd function that keeps only what the products need.

peft's own LoRA layer keeps the dropout's copy of its input, casts, and adds two full-size results. Here the frozen
weight gets no gradient, the update rides on the large product (`addmm`), and nothing but the input and its rank-r
image is kept. Taken only for a plain floating-point `nn.Linear`; every other layer is called as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function


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
    x: Tensor, linear: Linear, kept: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """The product (tokens, out) and the input's rank-r image (tokens, rank).

    `kept` (tokens, in) marks what dropout left of the update's input.
    """
    weight, bias, a, b, scale = linear
    y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    if a is None or b is None:
        return y, None
    low = _drop(x, kept, dropout) @ a.t()
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
        image = (grad @ b).mul_(scale)  # (tokens, rank)
        if needs[3]:
            d_a = image.t() @ _drop(x, kept, dropout)
        if needs[4]:
            d_b = (grad.t() @ (x @ a.t() if low is None else low)).mul_(scale)
    if needs[0]:
        d_x = grad @ weight if d_x is None else d_x.addmm_(grad, weight)
        if image is not None and a is not None:
            d_x = d_x.addmm_(image, a) if kept is None else d_x.add_(_drop(image @ a, kept, dropout))
    return d_x, [d_weight, d_bias, d_a, d_b]


class _LoraLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dropout: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        # One byte a number instead of a dropped copy of the input.
        kept = torch.rand_like(flat) >= dropout if dropout else None
        y, low = multiply(flat, Linear(weight, bias, a, b, scale), kept, dropout)
        ctx.save_for_backward(flat, low, kept, weight, bias, a, b)
        ctx.scale, ctx.dropout, ctx.shape = scale, dropout, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple:
        flat, low, kept, weight, bias, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        linear = Linear(weight, bias, a, b, ctx.scale)
        needs = ctx.needs_input_grad[:5]
        d_x, rest = multiply_backward(grad, flat, low, linear, needs, None, kept, ctx.dropout)
        return (d_x.view(ctx.shape) if d_x is not None else None), *rest, None, None


def _three(tensors: Any, scales: tuple[float, float, float]) -> list[Linear]:
    """Gate, up and down out of the flat arguments an autograd function takes."""
    groups = zip(tensors[0::4], tensors[1::4], tensors[2::4], tensors[3::4], scales, strict=True)
    return [Linear(weight, bias, a, b, scale) for weight, bias, a, b, scale in groups]


class _GatedMlp(Function):
    """down(silu(gate(x)) * up(x)), keeping x and the two products: half of what autograd keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, float, float], *tensors: Any) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        gate, up, down = _three(tensors, scales)
        g, _ = multiply(flat, gate)
        u, _ = multiply(flat, up)
        y, _ = multiply(nn.functional.silu(g).mul_(u), down)
        ctx.save_for_backward(flat, g, u, *tensors)
        ctx.scales, ctx.shape = scales, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple:
        flat, g, u, *tensors = ctx.saved_tensors
        gate, up, down = _three(tensors, ctx.scales)
        needs = [ctx.needs_input_grad[2 + 4 * i : 6 + 4 * i] for i in range(3)]
        grad = grad.reshape(-1, grad.shape[-1])
        s = torch.sigmoid(g)
        h = g * s  # silu(g)
        d_hidden, d_down = multiply_backward(grad, h * u, None, down, (True, *needs[2]), None)
        assert d_hidden is not None  # asked for in `needs`
        d_up_out = d_hidden * h
        # d silu / d g = s + silu(g) (1 - s)
        d_gate_out = d_hidden.mul_(u).mul_(s.add_(h.mul_(1 - s)))
        wants_x = ctx.needs_input_grad[0]
        d_x, d_gate = multiply_backward(d_gate_out, flat, None, gate, (wants_x, *needs[0]), None)
        d_x, d_up = multiply_backward(d_up_out, flat, None, up, (wants_x, *needs[1]), d_x)
        return (d_x.view(ctx.shape) if d_x is not None else None), None, *d_gate, *d_up, *d_down


class _RmsNorm(Function):
    """x / rms(x) * weight, keeping x and its scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rms = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rms)
        return (x * rms).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple:
        x, weight, rms = ctx.saved_tensors
        unit = x * rms
        d_weight = (grad * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        d_x = None
        if ctx.needs_input_grad[0]:
            d_unit = grad * weight
            mean = (d_unit * unit).mean(-1, keepdim=True)
            d_x = d_unit.sub_(unit.mul_(mean)).mul_(rms)
        return d_x, d_weight, None


def lora_linear(x: Tensor, linear: Linear, dropout: float = 0.0) -> Tensor:
    """(..., in) -> (..., out); `dropout` is the share of the update's inputs set to 0."""
    return _LoraLinear.apply(x, *linear, dropout)


def gated_mlp(x: Tensor, gate: Linear, up: Linear, down: Linear) -> Tensor:
    """(..., hidden) -> (..., hidden), silu between."""
    return _GatedMlp.apply(x, (gate.scale, up.scale, down.scale), *gate[:4], *up[:4], *down[:4])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., hidden); `eps` is added to the mean square."""
    return _RmsNorm.apply(x, weight, eps)
