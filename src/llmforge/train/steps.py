"""Which rows one optimizer step learns from, on which rank and in which passes.

The plan depends on seed, epoch and step alone, so a resumed run meets the same rows in the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from llmforge.data.example import Encoded, EncodedSet
from llmforge.data.groups import Members, first_and_rest, is_group, open_group
from llmforge.data.plan import Batch, best_fit, by_start, even_parts, lay_packed, lay_padded, lay_tree, within_budget

# Rows of this many steps are sorted by length together when group_by_length is set: enough rows to find equals, few
# enough that an epoch still mixes. transformers' own sampler takes the same number.
STEPS_PER_GROUP = 50


@dataclass(frozen=True)
class StepShape:
    """How an optimizer step is cut into passes."""

    rows_per_pass: int  # sequences of one forward pass on one rank
    passes: int  # gradient_accumulation_steps
    num_ranks: int = 1
    rank: int = 0

    @property
    def rows_per_step(self) -> int:
        return self.rows_per_pass * self.passes * self.num_ranks


@dataclass(frozen=True)
class Line:
    """Many rows on one line; needs attention that keeps them apart (model/attention.py)."""

    tokens: int  # of one line; a longer row has a line of its own
    share: bool  # whether starts that rows share stand once


class Units(NamedTuple):
    """Rows or packed sequences.

    Attributes:
        rows: for each unit an array of its rows.
        lengths: (units,) tokens.
    """

    rows: Sequence[np.ndarray] | np.ndarray
    lengths: np.ndarray


class StepPlan(Dataset):
    """`plan[epoch, step]` is the list of batches this rank computes in that optimizer step.

    A step holds `rows_per_step` units: rows, or with `pack_to` sequences of up to so many tokens that hold several
    rows. How its passes are cut is free, since the loss of a step does not depend on it: with a `line` all rows of the
    step are laid on lines of so many tokens, sorted by their starts; without one, units of similar length share a
    padded pass. Ranks that run out of batches get fillers (`num_rows` 0), so that all ranks take part in the same
    number of passes.

    `epoch_rows(epoch)` says which rows an epoch takes, where it is not each of them once. Where rows are packed, later
    epochs have as many sequences as the first: one more is left out, one too few is made up by one that comes twice.

    A group of rows (data/groups.py) is a unit, so its members share a pass, but for those marked `aside`. `shift`
    is that of `lay_padded`.
    """

    def __init__(
        self,
        rows: EncodedSet,
        shape: StepShape,
        *,
        seed: int,
        pad_id: int,
        pack_to: int | None = None,
        line: Line | None = None,
        group_by_length: bool = False,
        drop_last: bool = False,
        shuffle: bool = True,
        shift: int = 1,
        aside: int | None = None,
        epoch_rows: Callable[[int], np.ndarray] | None = None,
    ):
        self.shuffle, self.shift, self.aside = shuffle, shift, aside
        self.rows, self.shape, self.seed, self.pad_id = rows, shape, seed, pad_id
        self.packed, self.line, self.group_by_length = pack_to is not None, line, group_by_length
        self.pack_to, self.epoch_rows = pack_to, epoch_rows
        self.grouped = len(rows) > 0 and is_group(rows[0])
        whole, rest = divmod(len(self.units(0).lengths), shape.rows_per_step)
        self.num_steps = max(1, whole + (rest > 0 and not drop_last))

    @lru_cache(maxsize=2)  # noqa: B019 - one plan lives as long as the process
    def units(self, epoch: int) -> Units:
        """What the epoch's steps are made of, in the order of the rows."""
        if epoch and self.epoch_rows is None:
            return self.units(0)
        rows = np.arange(len(self.rows)) if self.epoch_rows is None else self.epoch_rows(epoch)
        lengths = self.rows.lengths[rows]
        if self.pack_to is None:
            return Units(rows[:, None], lengths)
        sequences = best_fit(lengths.tolist(), self.pack_to, len(rows))
        return Units([rows[group] for group in sequences], np.array([lengths[group].sum() for group in sequences]))

    def __len__(self) -> int:
        return len(self.rows)

    @lru_cache(maxsize=2)  # noqa: B019 - one plan lives as long as the process
    def order(self, epoch: int) -> np.ndarray:
        """(units,) the epoch's order of units."""
        draw = np.random.default_rng([self.seed, epoch])
        lengths = self.units(epoch).lengths
        order = draw.permutation(len(lengths)) if self.shuffle else np.arange(len(lengths))
        order = np.resize(order, len(self.units(0).lengths))
        if not self.group_by_length:
            return order
        per_step = self.shape.rows_per_step
        group = STEPS_PER_GROUP * per_step
        parts = [order[i : i + group] for i in range(0, len(order), group)]
        parts = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
        order = np.concatenate(parts)
        # Steps change places, so that the learning rate does not follow the length; a short last step stays last.
        whole = len(order) // per_step * per_step
        steps = draw.permutation(order[:whole].reshape(-1, per_step), axis=0)
        return np.concatenate([steps.reshape(-1), order[whole:]])

    def __getitem__(self, key: tuple[int, int]) -> list[Batch]:
        epoch, step = key
        start = step * self.shape.rows_per_step
        units = self.units(epoch)
        chosen = self.order(epoch)[start : start + self.shape.rows_per_step]
        chosen = chosen[np.argsort(-units.lengths[chosen], kind="stable")]
        return self.passes([units.rows[unit].tolist() for unit in chosen])

    def passes(self, units: list[list[int]]) -> list[Batch]:
        """This rank's share of the units, laid out; fillers at the end where other ranks have one batch more."""
        shares = self._shares_of_lines(units) if self.line else self._shares(units)
        mine = shares[self.shape.rank]
        batches = [self.lay(group) for group in mine]
        missing = max(map(len, shares)) - len(batches)
        some = next(share[0] for share in shares if share)
        return batches + [filler(batches[-1] if batches else self.lay(some))] * missing

    def _shares(self, units: list[list[int]]) -> list[list[list[int]]]:
        """Rows of each pass of each rank."""
        if self.packed:  # attention over one line costs its length squared, so each sequence has its own pass
            groups = units
        else:
            size = self.shape.rows_per_pass
            groups = [[unit[0] for unit in units[i : i + size]] for i in range(0, len(units), size)]
        return [groups[rank :: self.shape.num_ranks] for rank in range(self.shape.num_ranks)]

    def _shares_of_lines(self, units: list[list[int]]) -> list[list[list[int]]]:
        """The same for lines: each rank gets neighbours of about the same cost, cut where a line is full."""
        assert self.line is not None
        rows = [row for unit in units for row in unit]
        if self.grouped:
            firsts, rest = zip(*(first_and_rest(self.rows[row], self.line.share) for row in rows), strict=True)
            order, costs = by_start(firsts)
            costs[:, 0] += np.array(rest)[order]
        else:
            order, costs = by_start([self.rows.ids_of(row) for row in rows])
        if not self.line.share:
            costs[:, 1] = 0
        return [
            [
                [rows[order[part[i]]] for i in group]
                for group in within_budget(costs[part.start : part.stop], self.line.tokens)
            ]
            for part in even_parts(costs, self.shape.num_ranks)
        ]

    def lay(self, group: list[int]) -> Batch:
        if self.aside is None:
            return self._lay(self.rows, group)
        others, aside = (self._lay(Members(self.rows, self.aside, inside), group) for inside in (False, True))
        return replace(others, aside=aside)

    def _lay(self, rows: Sequence[Encoded], group: list[int]) -> Batch:
        if self.line and self.line.share:
            batch = lay_tree(rows, group, shift=self.shift)
        elif self.line or self.packed:
            batch = lay_packed(rows, group, shift=self.shift)
        else:
            batch = lay_padded(rows, group, self.pad_id, shift=self.shift)
        if self.rows.reference is None:
            return batch
        numbers = self.rows.reference.take(group)
        if isinstance(rows, Members):
            marks = [mark for i in group for mark in open_group(self.rows[i])[1]]
            numbers = numbers[[rows.keeps(mark) for mark in marks]]
        return replace(batch, reference=numbers)


def filler(batch: Batch) -> Batch:
    """A batch that takes part in the pass and counts nothing."""
    return replace(batch, num_rows=0)


class StepSampler(Sampler):
    """Keys (epoch, step) of a plan. Trainer calls `set_epoch` on `loader.batch_sampler.batch_sampler`."""

    def __init__(self, num_steps: int):
        self.num_steps, self.epoch = num_steps, 0

    @property
    def batch_sampler(self) -> StepSampler:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self.epoch, step)] for step in range(self.num_steps)])

    def __len__(self) -> int:
        return self.num_steps


def _only(items: list[list[Batch]]) -> list[Batch]:
    return items[0]


def step_loader(plan: StepPlan, num_workers: int = 0) -> DataLoader:
    """A loader with one item per optimizer step: list[Batch]."""
    return DataLoader(plan, batch_sampler=StepSampler(plan.num_steps), collate_fn=_only, num_workers=num_workers)
