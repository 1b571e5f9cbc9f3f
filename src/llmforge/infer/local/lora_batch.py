"""Requests for different adapters, and for the base, in one forward pass over an unmodified base model.

The rows of a pass are sorted by adapter, so each adapter's rows are one span, and every layer adds each adapter's part
to its own span alone. Against one wide product over all adapters with a mask, the spans took 126 ms instead of 127 for
32 rows and four adapters of rank 8, and 723 instead of 758 for 300 rows (linear layers of a 135M Llama, one CPU
thread, without adapters 111 and 664; docs/serving_adapters.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from llmforge.infer.local.live import base_of
from llmforge.infer.local.low_rank import JoinedLowRank, LowRank
from llmforge.infer.local.packed import PackedSibling, PackedSiblings

BASE = ""  # the name of rows without an adapter
Update = Callable[[Tensor, Tensor], None]  # x (rows, in), y (rows, out): put the adapter's part into y, in place
Span = tuple[str | None, int]  # an adapter's name, and how many rows in a row are its own; None is the base too


class AdapterBatch:
    """Adapters over one base, by name; each pass says which rows are whose.

    Only the `forward` of layers that an adapter changes is replaced, on the instance, while there is such an adapter.
    """

    can_mix = True  # rows of several adapters may share a pass

    def __init__(self, model: nn.Module):
        self.model = model
        self.names: set[str] = set()
        self._places: dict[nn.Module | PackedSiblings, _Place] = {}
        self._rows: list[tuple[str, int]] = []
        self.only: str | None = BASE  # whose rows all of this pass are, if they are one's
        self._head_rows: list[tuple[str, int]] | None = None
        self._runs: dict[int, list[tuple[str, int, int]]] = {}

    def add(self, name: str, updates: Mapping[str, Update]) -> None:
        """Serve one more adapter: its update for each layer, by the layer's name (adapter_updates.read_updates).

        Raises:
            ValueError: the name is taken.
        """
        if name in self.names or name == BASE:
            raise ValueError(f"an adapter called {name!r} is here already")
        self.names.add(name)
        joined: dict[PackedSiblings, dict[int, LowRank]] = {}
        for path, update in updates.items():
            module = base_of(self.model).get_submodule(path)
            own = vars(module).get("forward")
            own = own.before if isinstance(own, _Layer) else own
            if type(update) is LowRank and isinstance(own, PackedSibling):
                joined.setdefault(own.siblings, {})[own.place] = update
                continue
            if module not in self._places:
                self._places[module] = _Layer(self, module)
            self._places[module].updates[name] = update
        for siblings, parts in joined.items():
            if siblings not in self._places:
                self._places[siblings] = _Siblings(self, siblings)
            self._places[siblings].updates[name] = JoinedLowRank(parts, siblings.sizes)

    def remove(self, name: str) -> None:
        """Serve an adapter no longer; layers without any adapter run as they did before."""
        self.names.remove(name)
        for key, place in list(self._places.items()):
            place.updates.pop(name, None)
            if not place.updates:
                place.restore()
                del self._places[key]

    @contextmanager
    def using(self, rows: Iterable[Span], head_rows: Iterable[Span] | None = None) -> Iterator[None]:
        """Inside, forward passes read their rows so: adapter and number of rows, in their order.

        A row is a token of a flat pass (1, T), or a row of a padded one (B, T).

        Args:
            head_rows: the same for the rows that reach the output head, where a flat pass keeps only some of them; the
                last layers may compute these alone.

        Raises:
            KeyError: an adapter that is not here.
        """
        self._rows = _merged(rows)
        self._head_rows = None if head_rows is None else _merged(head_rows)
        names = {name for name, _ in self._rows}
        if strange := names - self.names - {BASE}:
            raise KeyError(f"no adapter called {', '.join(sorted(strange))}")
        self.only = None if len(names) > 1 else names.pop() if names else BASE
        self._runs = {}
        try:
            yield
        finally:
            self.only, self._rows, self._head_rows, self._runs = BASE, [], None, {}

    def runs(self, num_rows: int) -> list[tuple[str, int, int]]:
        """(adapter, first row, end) among `num_rows` rows of a layer, those of the base left out."""
        if num_rows not in self._runs:
            # As many as all rows are all of them, whichever list says so.
            given = self._rows
            if self._head_rows is not None and num_rows == sum(count for _, count in self._head_rows):
                given = self._head_rows
            num_given = sum(count for _, count in given)
            if num_rows % num_given:
                raise ValueError(f"a layer got {num_rows} rows, but the adapters of {num_given} are known")
            self._runs[num_rows] = list(_places(given, num_rows // num_given))
        return self._runs[num_rows]

    def __deepcopy__(self, memo: dict[int, Any]) -> AdapterBatch:
        return self  # a copy of the model, made to look at it, is no other server


class _Place:
    """Where adapters put their parts into an output: each on that adapter's rows."""

    def __init__(self, batch: AdapterBatch):
        self.batch = batch
        self.updates: dict[str, Update] = {}

    def update(self, x: Tensor, y: Tensor) -> None:
        """x (..., in), y (..., out): put the parts of the rows of this pass into y, in place."""
        if (name := self.batch.only) is not None:  # as often; this costs as much as a small product
            if (update := self.updates.get(name)) is not None:
                update(*_flat(x, y))
            return
        x, y = _flat(x, y)
        for name, start, end in self.batch.runs(len(y)):
            if (update := self.updates.get(name)) is not None:
                update(x[start:end], y[start:end])

    def restore(self) -> None:
        """Leave the model as it was without this."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> _Place:
        return self


class _Layer(_Place):
    """A layer's forward: its own, then the adapters' parts."""

    def __init__(self, batch: AdapterBatch, module: nn.Module):
        super().__init__(batch)
        self.module = module
        self.before = vars(module).get("forward")  # somebody's own form of this one layer, or None
        self.forward: Callable[..., Tensor] = module.forward
        module.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        y = self.forward(x)
        self.update(x, y)
        return y

    def restore(self) -> None:
        if self.before is None:
            del self.module.__dict__["forward"]
        else:
            self.module.forward = self.before


class _Siblings(_Place):
    """The one product of several layers, with the adapters' parts in all of them."""

    def __init__(self, batch: AdapterBatch, siblings: PackedSiblings):
        super().__init__(batch)
        self.siblings = siblings
        siblings.adds = self.update

    def restore(self) -> None:
        self.siblings.adds = None


def _flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x (rows, in) and y (rows, out) of (..., in) and (..., out)."""
    if y.ndim == 2 == x.ndim:
        return x, y
    y_rows = y.view(-1, y.shape[-1])
    return x.reshape(len(y_rows), *x.shape[y.ndim - 1 :]), y_rows  # ids of an embedding have no width


def _merged(spans: Iterable[Span]) -> list[tuple[str, int]]:
    """Neighbours of one adapter as one span."""
    merged: list[tuple[str, int]] = []
    for given, count in spans:
        name = given or BASE
        if merged and merged[-1][0] == name:
            merged[-1] = (name, merged[-1][1] + count)
        elif count:
            merged.append((name, count))
    return merged


def _places(spans: Sequence[tuple[str, int]], width: int) -> Iterator[tuple[str, int, int]]:
    start = 0
    for name, count in spans:
        end = start + count * width
        if name != BASE:
            yield name, start, end
        start = end
