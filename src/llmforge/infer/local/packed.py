"""Linear layers of a served CPU model in the memory layout that oneDNN's kernels read, made once when it is loaded.

The few rows of a step leave a plain product waiting for memory and for its own repacking of the weights. Packed ones
took 0.56 of the time for 4 rows, 0.60 for 8, 0.65 for 16, 0.76 for 64, 0.80 for 128 (all layers of a 135M Llama in
fp32, one core of an AMD EPYC, benchmarks/packed_linears.py); which is faster is tried at each start. Layers that read
the same input, such as queries, keys and values, are one product. The plain weights are given up, so the memory does
not double; whoever needs to read them asks for them.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmforge.infer.local.live import base_of

log = logging.getLogger(__name__)
# oneDNN makes code for every number of rows and keeps it, 0.8 MB for a layer's shape: rows are filled up to the next of
# these (up to, in steps of), and more are computed in pieces. Below four rows it takes a path that is slower than four.
ROW_STEPS = ((32, 4), (256, 8))
# Outputs of layers that are joined: of a wider product the first outputs have left the core's cache before the last are
# there, and what comes next reads them all. 128 rows of gate and up (1536 outputs each), with what follows them, took
# 6.42 ms apart instead of 6.53, and 6.71 instead of 6.87 with an adapter; fewer rows as long (135M Llama, one core).
MOST_OUTPUTS = 1024
MOST_ROWS = ROW_STEPS[-1][0]
KNOWN_ROWS = frozenset(rows for limit, step in ROW_STEPS for rows in range(step, limit + 1, step))
TRIAL_ROWS = 8
TRIALS = 5
TRIAL_BYTES = 128 << 20
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest logit


class PackedLinear:
    """A layer's forward over its packed weight, or over those of several layers: (..., in) -> (..., out of all)."""

    def __init__(self, *layers: nn.Linear):
        weight = _joined([layer.weight for layer in layers])
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])
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

    def plain(self) -> Tensor:
        """The weight (out, in), a copy."""
        return self.weight.to_dense()

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self  # a copy of the model, made to look at it, shares its weights


class PackedSiblings:
    """Layers that a model calls one after the other with the same input: the first call computes for all of them."""

    def __init__(self, layers: Sequence[nn.Linear]):
        self.product = PackedLinear(*layers)
        self.sizes = [layer.out_features for layer in layers]
        self.parts = [PackedSibling(self, place) for place in range(len(layers))]
        self.adds: Callable[[Tensor, Tensor], None] | None = None  # x, y (..., out of all): into y, after the product
        self._x: Tensor | None = None
        self._version = 0
        self._ys: Sequence[Tensor] = ()

    def part(self, x: Tensor, place: int) -> Tensor:
        """(..., in) -> (..., out) of the layer at this place, a view of the product."""
        if x is not self._x or x._version != self._version:
            y = self.product(x)
            if self.adds is not None:
                self.adds(x, y)
            self._x, self._version, self._ys = x, x._version, y.split(self.sizes, -1)
        y = self._ys[place]
        if place == len(self.sizes) - 1:
            self._x, self._ys = None, ()
        return y


class PackedSibling:
    """The forward of one of them."""

    def __init__(self, siblings: PackedSiblings, place: int):
        self.siblings, self.place = siblings, place

    def __call__(self, x: Tensor) -> Tensor:
        return self.siblings.part(x, self.place)

    def plain(self) -> Tensor:
        """The weight (out, in), a copy."""
        return self.siblings.product.plain().split(self.siblings.sizes)[self.place].clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedSibling:
        return self


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach() for x in tensors]) if len(tensors) > 1 else tensors[0].detach()


def filled_up(count: int) -> int:
    """The rows that oneDNN computes for so many."""
    whole, rest = divmod(count, MOST_ROWS)
    if whole and not rest:
        return count
    step = next(step for limit, step in ROW_STEPS if rest <= limit)
    return whole * MOST_ROWS + max(1, -(-rest // step)) * step


def is_packed(model: nn.Module) -> bool:
    """Whether layers of a model compute so."""
    return any(isinstance(vars(module).get("forward"), (PackedLinear, PackedSibling)) for module in model.modules())


class Packing:
    """The packed layers of a model, by name.

    Args:
        names: of the layers to pack.
        siblings: those of them that read the same input, in the order of their calls.
    """

    def __init__(self, model: nn.Module, names: Collection[str], siblings: Collection[Sequence[str]] = ()):
        self.layers: dict[str, nn.Linear] = {name: model.get_submodule(name) for name in names}  # type: ignore[misc]
        owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        # Layers without a plain weight; an embedding still needs one that it shares.
        self._packed_only = {name for name, layer in self.layers.items() if owners[id(layer.weight)] == 1}
        self._packed: dict[str, PackedLinear | PackedSibling] = {}
        groups = [
            group
            for group in siblings
            if self._packed_only.issuperset(group)
            and len({self.layers[name].bias is None for name in group}) == 1
            and sum(self.layers[name].out_features for name in group) <= MOST_OUTPUTS
        ]
        grouped = set(itertools.chain(*groups))
        for group in [*groups, *((name,) for name in self.layers if name not in grouped)]:
            layers = [self.layers[name] for name in group]
            forwards: Sequence[PackedLinear | PackedSibling]
            forwards = PackedSiblings(layers).parts if len(layers) > 1 else [PackedLinear(*layers)]
            for name, layer, own in zip(group, layers, forwards, strict=True):
                self._packed[name] = vars(layer)["forward"] = own
                if name in self._packed_only:
                    self._give_up(name)
        # What is left of a file's mapping is small; a copy of its own lets the mapping go.
        for parameter in model.parameters():
            if parameter.numel():
                parameter.data = parameter.data.clone()

    def weight_of(self, name: str, layer: Any) -> Tensor:
        """The plain weight of a layer of the model, packed or not: (out, in)."""
        return self._packed[name].plain() if name in self._packed_only else layer.weight

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
            layer.weight.data = self._packed[name].plain()

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
    with _calls(base, names) as calls:
        before = [base(input_ids=x).logits for x in ids]
    for siblings in (same_input(calls), ()):
        packing = Packing(base, names, siblings)
        try:
            after = [base(input_ids=x).logits for x in ids]
            problem = "" if all(map(_alike, before, after)) else "it gives other logits with them"
        except RuntimeError as error:  # a layer whose weight or whose own result the model wants
            problem = str(error)
        if not problem:
            return packing
        packing.undo()
    log.info("linear layers stay as they are: %s", problem)
    return None


Calls = list[tuple[str, Tensor]]


@contextmanager
def _calls(model: nn.Module, names: Collection[str]) -> Iterator[Calls]:
    """Inside, what the layers are called with, in the order of their calls."""
    calls: Calls = []

    def note(name: str) -> Any:
        return model.get_submodule(name).register_forward_pre_hook(
            lambda _, given: calls.append((name, given[0])) if given else None
        )

    handles = [note(name) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def same_input(calls: Calls) -> list[tuple[str, ...]]:
    """Layers that were called one after the other with the very same tensor, each time that they were called."""
    runs = [tuple(name for name, _ in run) for _, run in itertools.groupby(calls, key=lambda call: id(call[1]))]
    times = Counter(name for run in set(runs) for name in run)
    return [run for run in dict.fromkeys(runs) if len(run) > 1 and all(times[name] == 1 for name in run)]


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
