"""What LoRA and DoRA add to a layer's output: products with two small matrices.

x A^T is computed as (A x^T)^T: a CPU's kernels fill their registers with the rows of x then, of which there are many,
and not with a rank of 8. For 192 rows of 1536 that took 93 us instead of 184, of 576 30 instead of 50 (one core of an
AMD EPYC).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FEW_ROWS = 48  # the calls of several small products cost as much as the zeros of one


class LowRank:
    """y += scale (x A^T) B^T."""

    def __init__(self, a: Tensor, b: Tensor, scale: float):
        self.a = a  # (rank, in)
        self.b = (b * scale).t()  # (rank, out)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        y.addmm_(torch.mm(self.a, x.t()).t(), self.b)


class Directed(LowRank):
    """DoRA: y = c * (x W^T + scale (x A^T) B^T) + bias, with c = m / |W + scale B A| for each output.

    Source: Liu et al. 2024, arXiv:2402.09353, eq. 5.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float, magnitude: Tensor, weight: Tensor, bias: Tensor | None):
        super().__init__(a, b, scale)
        whole = weight.to(a.dtype) + scale * (b @ a)
        self.factor = magnitude.flatten() / whole.norm(dim=1)  # (out,)
        self.bias = bias

    def __call__(self, x: Tensor, y: Tensor) -> None:
        if self.bias is not None:
            y.sub_(self.bias)
        super().__call__(x, y)
        y.mul_(self.factor)
        if self.bias is not None:
            y.add_(self.bias)


class JoinedLowRank:
    """Those of several layers that read the same x and write side by side into one y.

    Their x A^T are one product, three of rank 8 in 63 us instead of 90 (192 rows of 576). So are their B for few rows,
    with zeros where one layer's rank meets another's output; for many, the zeros cost more than the calls.

    Args:
        parts: by the layer's place.
        sizes: outputs of the layer at each place.
    """

    def __init__(self, parts: Mapping[int, LowRank], sizes: Sequence[int]):
        starts = [0, *itertools.accumulate(sizes)]
        self.a = torch.cat([part.a for _, part in sorted(parts.items())])  # (all ranks, in)
        self.b = self.a.new_zeros(len(self.a), starts[-1])  # (all ranks, out of all)
        self.parts: list[tuple[slice, slice]] = []  # of each layer: its ranks, its outputs
        at = 0
        for place, part in sorted(parts.items()):
            ranks, outputs = slice(at, at + len(part.a)), slice(starts[place], starts[place + 1])
            self.b[ranks, outputs] = part.b
            self.parts.append((ranks, outputs))
            at += len(part.a)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        h = torch.mm(self.a, x.t())
        if len(x) <= FEW_ROWS:
            y.addmm_(h.t(), self.b)
            return
        for ranks, outputs in self.parts:
            y[:, outputs].addmm_(h[ranks].t(), self.b[ranks, outputs])
