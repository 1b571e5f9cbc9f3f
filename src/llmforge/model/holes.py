"""Freed memory that the C library holds on to within a training pass, given back to the kernel at a few places.

glibc seldom finds an aligned block again that it has just freed (model/arena.py), so a pass leaves holes in the heap
that add up to a quarter of its memory. Giving them back costs the page faults of what is taken again: a few times a
pass that is 1 % of a step (measured on 2 CPU cores).
"""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor, nn

TIMES = 2  # in each direction


def give_back_holes(layers: nn.ModuleList) -> bool:
    """Give free heap memory back `TIMES` times in a forward pass through `layers` and as often in its backward pass.

    Returns:
        Whether this C library can: False without glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False

    def back(grad: Tensor) -> None:
        trim(0)

    def after(module: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        if states.requires_grad:  # evaluation keeps nothing, so it leaves few holes
            trim(0)
            states.register_hook(back)

    every = -(-len(layers) // TIMES)
    for layer in layers[every - 1 :: every]:
        layer.register_forward_hook(after)
    return True
