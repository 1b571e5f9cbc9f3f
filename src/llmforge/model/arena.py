"""A training pass's own memory on a CPU (cards have an allocator of their own that does well).

The C library mixes what is kept for the backward pass with what lives for a moment, and glibc seldom finds an aligned
block again that it has just freed: a run takes up to twice the memory it uses, and gives some of it back to the kernel
at every step only to ask for it again. What the lean layers and the forest's attention keep dies together when the pass
ends: it lies in one block, filled from the front, used again by the next pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: a cache line


class Arena:
    """`size` bytes; what does not fit any more is left to the C library.

    Attributes:
        wanted: bytes asked for since `open`, whether they fitted or not.
    """

    def __init__(self, size: int = 0):
        self._storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
        self.wanted = 0
        self._used = 0
        self._outside: set[int] = set()  # storages asked for here that did not fit: asked for once

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Tensors kept inside lie in the arena; they are overwritten after the next `open`."""
        self.wanted = self._used = 0
        self._outside.clear()
        token = _open.set(self)
        try:
            yield
        finally:
            _open.reset(token)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Fresh memory, or None when the arena is full."""
        size = -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.wanted += size
        if self._used + size > self._storage.nbytes():
            return None
        start, self._used = self._used, self._used + size
        strides = torch.empty(shape, device="meta").stride()
        # Not a view of one large tensor: views share the counter by which autograd sees that something was overwritten.
        return torch.empty(0, dtype=dtype).set_(self._storage, start // dtype.itemsize, shape, strides)

    def left_out(self, tensor: Tensor) -> None:
        """The tensor that was made because `take` had no room."""
        self._outside.add(tensor.untyped_storage().data_ptr())

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor already lies here, or was asked for and left out."""
        place = tensor.untyped_storage().data_ptr()
        return place == self._storage.data_ptr() or place in self._outside


_open: ContextVar[Arena | None] = ContextVar("forge_arena", default=None)


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """A pass inside another one's arena that keeps nothing for a backward pass, and so takes none of it."""
    token = _open.set(None)
    try:
        yield
    finally:
        _open.reset(token)


def empty_to_keep(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory (*shape) for a tensor that the backward pass will read."""
    arena = _open.get() if like.device.type == "cpu" else None
    taken = arena.take(shape, dtype or like.dtype) if arena else None
    if taken is None:
        taken = like.new_empty(shape, dtype=dtype)
        if arena:
            arena.left_out(taken)
    return taken


def keep(tensor: Tensor) -> Tensor:
    """`tensor`, copied into the open arena when it does not lie there."""
    arena = _open.get() if tensor.device.type == "cpu" else None
    if arena is None or arena.holds(tensor):
        return tensor
    taken = arena.take(tuple(tensor.shape), tensor.dtype)
    return tensor if taken is None else taken.copy_(tensor)
