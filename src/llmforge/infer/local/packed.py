"""Linear layers of a served CPU model in the memory layout that oneDNN's kernels read, made once when it is loaded.

The few rows of a step leave a plain product waiting for memory and for its own repacking of the weights. Packed ones
took 0.56 of the time for 4 rows, 0.60 for 8, 0.65 for 16, 0.76 for 64, 0.80 for 128 (all layers of a 135M Llama in
fp32, one core of an AMD EPYC, benchmarks/packed_linears.py); which is faster is tried at each start. The plain weights
are given up, so the memory does not double; whoever needs to read them asks for them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmforge.infer.local.live import base_of

log = logging.getLogger(__name__)
# oneDNN makes code for every number of rows and keeps it, 0.6 MB for a layer's shape: rows are filled up to the next of
# these (up to, in steps of), and more are computed in pieces. Below four rows it takes a path that is slower than four.
ROW_STEPS = ((16, 4), (64, 8), (128, 16), (256, 32))
MOST_ROWS = ROW_STEPS[-1][0]
KNOWN_ROWS = frozenset(rows for limit, step in ROW_STEPS for rows in range(step, limit + 1, step))
TRIAL_ROWS = 8
TRIALS = 5
TRIAL_BYTES = 128 << 20
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest logit


class PackedLinear:
    """A layer's forward over its packed weight; (..., in) -> (..., out)."""

    def __init__(self, layer: nn.Linear):
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        self.bias = layer.bias
        self.product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[-1]
        if count in KNOWN_ROWS:  # as most are; what follows costs as much as the product of a small layer
            return self.product(x, self.weight, self.bias, "none", [], "")
        rows = x.reshape(count, x.shape[-1])
        if count > MOST_ROWS:
            return torch.cat([self(piece) for piece in rows.split(MOST_ROWS)]).view(*x.shape[:-1], -1)
        y: Tensor = self(F.pad(rows, (0, 0, 0, filled_up(count) - count)))
        return y[:count].view(*x.shape[:-1], y.shape[-1])

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self  # a copy of the model, made to look at it, shares its weights


def filled_up(count: int) -> int:
    """The rows that oneDNN computes for so many, at most MOST_ROWS."""
    step = next(step for limit, step in ROW_STEPS if count <= limit)
    return max(1, -(-count // step)) * step


class Packing:
    """The packed layers of a model, by name.

    Args:
        names: of the layers to pack.
    """

    def __init__(self, model: nn.Module, names: Collection[str]):
        self.layers: dict[str, nn.Linear] = {name: model.get_submodule(name) for name in names}  # type: ignore[misc]
        owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        # Layers without a plain weight; an embedding still needs one that it shares.
        self._packed_only = {name for name, layer in self.layers.items() if owners[id(layer.weight)] == 1}
        self._packed: dict[str, PackedLinear] = {}
        for name, layer in self.layers.items():
            self._packed[name] = vars(layer)["forward"] = PackedLinear(layer)
            if name in self._packed_only:
                self._give_up(name)
        # What is left of a file's mapping is small; a copy of its own lets the mapping go.
        for parameter in model.parameters():
            if parameter.numel():
                parameter.data = parameter.data.clone()

    def weight_of(self, name: str, layer: Any) -> Tensor:
        """The plain weight of a layer of the model, packed or not: (out, in)."""
        return self._packed[name].weight.to_dense() if name in self._packed_only else layer.weight

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Inside, the layers have their plain weights too."""
        for name in self._packed_only:
            self._fill(name)
        try:
            yield
        finally:
            for name in self._packed_only:
                self._give_up(name)

    def keep_plain(self, name: str) -> None:
        """This layer shall have its plain weight from now on; somebody computes with it."""
        if name in self._packed_only:
            self._packed_only.discard(name)
            self._fill(name)

    def undo(self) -> None:
        """The model as it was."""
        for name, layer in self.layers.items():
            self.keep_plain(name)
            del layer.__dict__["forward"]

    def _fill(self, name: str) -> None:
        layer = self.layers[name]
        if not layer.weight.numel():
            layer.weight.data = self._packed[name].weight.to_dense()

    def _give_up(self, name: str) -> None:
        weight = self.layers[name].weight
        weight.data = weight.data.new_empty(0)


@torch.no_grad()
def pack(model: Any) -> Packing | None:
    """Pack a model's linear layers, where that is faster; None when the model stays as it is.

    Only plain linear layers on a CPU that nobody else has changed. A model that gives other logits with them, because
    it reads weights itself, gets them back.
    """
    base = base_of(model)
    names = [name for name, module in base.named_modules() if _can_be_packed(module)]
    if base is not model or not names or not torch.backends.mkldnn.is_available():
        return None
    if not is_faster(*time_layers([base.get_submodule(name) for name in names])):
        log.info("linear layers stay as they are: oneDNN is no faster here")
        return None
    ids = [torch.arange(1, count + 1)[None] for count in (1, TRIAL_ROWS)]
    before = [base(input_ids=x).logits for x in ids]
    packing = Packing(base, names)
    try:
        after = [base(input_ids=x).logits for x in ids]
        problem = "" if all(map(_alike, before, after)) else "it gives other logits with them"
    except RuntimeError as error:  # a layer whose weight the model reads itself has none now
        problem = str(error)
    if problem:
        log.info("linear layers stay as they are: %s", problem)
        packing.undo()
        return None
    return packing


def time_layers(layers: Sequence[Any]) -> tuple[float, float]:
    """Seconds of the products of some layers for a few rows, plain and packed: the shortest of rounds in turn.

    They are as many as no processor's cache holds, since a step reads its weights from memory.
    """
    size = 0
    tried: list[tuple[Any, PackedLinear]] = []
    for layer in layers:
        if (size := size + layer.weight.nbytes) <= TRIAL_BYTES or not tried:
            tried.append((layer, PackedLinear(layer)))
    times: list[list[float]] = [[], []]
    for _ in range(TRIALS):
        for place, own in enumerate(times):
            started = time.perf_counter()
            for pair in tried:
                layer = pair[0]
                pair[place](torch.ones(TRIAL_ROWS, layer.in_features, dtype=layer.weight.dtype))
            own.append(time.perf_counter() - started)
    return min(times[0]), min(times[1])


def is_faster(plain_s: float, packed_s: float) -> bool:
    """Whether packing pays."""
    return packed_s < plain_s


def _can_be_packed(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return weight.device.type == "cpu" and weight.dtype in TOLERANCE


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=TOLERANCE[a.dtype] * float(a.nan_to_num().abs().max()), equal_nan=True)
