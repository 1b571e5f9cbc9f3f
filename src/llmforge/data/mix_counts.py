"""How many rows of each data set an epoch learns from, and which: shares, counts, caps, and a ratio of domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmforge.config.schema import DataConfig
from llmforge.errors import RecipeError, nearest

DRAWN = ("proportional", "equal", "log_size", "temperature")


def probabilities(
    sizes: Sequence[int], strategy: str, *, temperature: float = 1.0, weights: Sequence[float] | None = None
) -> np.ndarray:
    """(sets,) the share p_i of each data set with n_i rows.

    proportional n_i; equal 1; log_size ln n_i, so that small sets are seen too; temperature n_i ** (1 / T), which goes
    from proportional at T = 1 to equal at large T. `weights` multiply these. All are scaled to add up to 1.

    Raises:
        RecipeError: log_size and a data set of fewer than 2 rows, whose logarithm is no share.

    Source: log_size from the llm3s lecture notes (p. 11); temperature as in mT5, Xue et al. 2021, arXiv:2010.11934.
    """
    counts = np.asarray(sizes, np.float64)
    if strategy == "log_size" and (counts < 2).any():
        raise RecipeError(f"mix_strategy: log_size needs at least 2 rows in each data set, got {list(sizes)}")
    raw = {
        "proportional": lambda: counts,
        "equal": lambda: np.ones(len(counts)),
        "log_size": lambda: np.log(counts),
        "temperature": lambda: counts ** (1 / temperature),
    }[strategy]()
    raw = raw if weights is None else raw * np.asarray(weights, np.float64)
    return raw / raw.sum()


def apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """(sets,) whole numbers that add up to `total`, nearest to the shares: the largest remainders get one more."""
    exact = total * shares / shares.sum()
    counts = np.floor(exact + 1e-9).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[most] += 1
    return counts


def epoch_counts(names: Sequence[str], sizes: Sequence[int], data: DataConfig) -> np.ndarray:
    """(sets,) rows of each data set in one epoch.

    In this order: the strategy's shares of `mix_rows` (concat takes every row), `mix_counts`, `mix_caps` of data sets,
    `mix_caps` of groups, which shrink all sets of a group alike, and `domain_ratio`, which shrinks the larger side.

    Raises:
        RecipeError: a name that is no data set, a number below 1, shares that cannot be had.
    """
    _check_names(names, data)
    counts = np.asarray(sizes, np.int64).copy()
    if data.mix_strategy in DRAWN:
        weights = [_number(data.mix_weights, "mix_weights", name, 1.0) for name in names]
        shares = probabilities(sizes, data.mix_strategy, temperature=data.mix_temperature, weights=weights)
        counts = apportion(data.mix_rows or int(sum(sizes)), shares)
        if not data.mix_repeat:
            counts = np.minimum(counts, sizes)
    counts = np.array([_whole(data.mix_counts, "mix_counts", n, int(c)) for n, c in zip(names, counts, strict=True)])
    caps = [_whole(data.mix_caps, "mix_caps", name, int(count)) for name, count in zip(names, counts, strict=True)]
    counts = np.minimum(counts, caps)
    for group, members in data.mix_groups.items():
        inside = np.array([name in members for name in names])
        cap = _whole(data.mix_caps, "mix_caps", group, int(counts[inside].sum()))
        if counts[inside].sum() > cap:
            counts[inside] = apportion(cap, counts[inside])
    if data.domain_ratio is not None:
        counts = _with_ratio(counts, np.array([name in data.domain_datasets for name in names]), data.domain_ratio)
    return counts


def _with_ratio(counts: np.ndarray, domain: np.ndarray, ratio: float) -> np.ndarray:
    """Counts in which data sets of the domain have `ratio` of all rows; rows are left out, never made up."""
    inside, outside = int(counts[domain].sum()), int(counts[~domain].sum())
    if not inside or not outside:
        raise RecipeError(
            f"domain_ratio: {inside} rows are of domain_datasets and {outside} are not; both are needed for a ratio"
        )
    if inside > ratio * (inside + outside):
        counts[domain] = apportion(round(outside * ratio / (1 - ratio)), counts[domain])
    else:
        counts[~domain] = apportion(round(inside * (1 - ratio) / ratio), counts[~domain])
    return counts


def draw_rows(size: int, count: int, seed: Sequence[int], epoch: int) -> np.ndarray:
    """(count,) rows of a data set of `size` rows for one epoch, in ascending order.

    Epochs go on where the last one ended in an endless line of shuffles, so every row comes before any comes again.
    The draw depends on seed and epoch alone.
    """
    if not count:
        return np.zeros(0, np.int64)
    start = epoch * count
    first, last = start // size, (start + count - 1) // size
    line = np.concatenate([np.random.default_rng([*seed, turn]).permutation(size) for turn in range(first, last + 1)])
    return np.sort(line[start - first * size :][:count])


class EpochRows:
    """`rows(epoch)`: which rows an epoch takes, in ascending order of data sets; the same on every rank and worker."""

    def __init__(self, rows: Sequence[np.ndarray], counts: Sequence[int], seed: int):
        self.rows, self.counts, self.seed = list(rows), list(counts), seed

    def __call__(self, epoch: int) -> np.ndarray:
        drawn = [
            rows[draw_rows(len(rows), count, (self.seed, number), epoch)]
            for number, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True))
        ]
        return np.concatenate(drawn)

    def __len__(self) -> int:
        return sum(self.counts)


def _check_names(names: Sequence[str], data: DataConfig) -> None:
    groups = {"mix_groups": [n for members in data.mix_groups.values() for n in members]}
    said = {
        "mix_weights": data.mix_weights,
        "mix_counts": data.mix_counts,
        "domain_datasets": data.domain_datasets,
        **groups,
    }
    for key, given in said.items():
        for name in given:
            if name not in names:
                raise RecipeError(f"{key}: {name!r} is none of the data sets.{nearest(name, names)} {_known(names)}")
    for name in data.mix_caps:
        if name not in names and name not in data.mix_groups:
            known = [*names, *data.mix_groups]
            raise RecipeError(f"mix_caps: {name!r} is no data set and no group.{nearest(name, known)} {_known(known)}")
    for name in names:
        found = [group for group, members in data.mix_groups.items() if name in members]
        if len(found) > 1:
            raise RecipeError(f"mix_groups: {name!r} is in {' and in '.join(found)}; a data set has one group")


def _known(names: Sequence[str]) -> str:
    return f"Known: {', '.join(names)}"


def _number(given: Mapping[str, object], key: str, name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise RecipeError(f"{key}: {name}: got {value!r}, expected a number above 0")
    return float(value)


def _whole(given: Mapping[str, object], key: str, name: str, default: int) -> int:
    value = given.get(name, default)
    if name in given and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise RecipeError(f"{key}: {name}: got {value!r}, expected a whole number above 0")
    return int(value)  # type: ignore[call-overload]  # an int: checked above, or the default
