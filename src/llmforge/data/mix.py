"""The order of rows of joined data sets: one after the other, or interleaved in turn or by shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmforge.errors import RecipeError

BLOCK = 1000  # draws at a time, as in `datasets`, so that the same seed gives the same order


def mix_order(lengths: Sequence[int], strategy: str, probs: Sequence[float], seed: int) -> np.ndarray:
    """The order of rows of joined data sets, (rows,) positions in the data sets laid one after the other.

    Args:
        lengths: rows of each data set.
        strategy: "concat"; or interleaved in turn, or by `probs` where given, until the first data set is exhausted
            (interleave_under), all are, shorter ones starting again (interleave_over), or all are, each row coming
            once (interleave_once).
        probs: the share of each data set, adding up to 1.

    Raises:
        RecipeError: shares that do not fit the data sets, or an empty data set.

    Source: `interleave_datasets` of the `datasets` library, which LLaMA-Factory calls; the orders are equal.
    """
    offsets = np.cumsum([0, *lengths[:-1]])
    if strategy == "concat" or len(lengths) == 1:
        return np.arange(sum(lengths))
    if 0 in lengths:
        raise RecipeError(f"mix_strategy: data set {list(lengths).index(0) + 1} of {len(lengths)} has no rows to mix")
    if probs:
        draws = _draws(lengths, strategy, _checked(probs, len(lengths)), seed)
    else:
        rounds = min(lengths) if strategy == "interleave_under" else max(lengths)
        draws = np.tile(np.arange(len(lengths)), rounds)
    turn = np.zeros(len(draws), np.int64)  # how often the drawn data set was drawn before
    for number in range(len(lengths)):
        places = np.flatnonzero(draws == number)
        turn[places] = np.arange(len(places))
    sizes = np.asarray(lengths)[draws]
    if strategy == "interleave_once":
        fresh = turn < sizes
        draws, turn, sizes = draws[fresh], turn[fresh], sizes[fresh]
    return turn % sizes + offsets[draws]


def _draws(lengths: Sequence[int], strategy: str, probs: np.ndarray, seed: int) -> np.ndarray:
    """Data sets drawn by their shares until the strategy's end."""
    random = np.random.default_rng(seed)
    enough = np.any if strategy == "interleave_under" else np.all
    counts = np.zeros(len(lengths), np.int64)
    blocks = []
    while not enough(counts >= lengths):
        blocks.append(random.choice(len(lengths), size=BLOCK, p=probs))
        counts += np.bincount(blocks[-1], minlength=len(lengths))
    draws = np.concatenate(blocks)
    ends = []  # where each data set's last row is drawn
    for number, length in enumerate(lengths):
        places = np.flatnonzero(draws == number)
        ends.append(int(places[length - 1]) if len(places) >= length else len(draws))
    return draws[: (min(ends) if strategy == "interleave_under" else max(ends)) + 1]


def _checked(probs: Sequence[float], count: int) -> np.ndarray:
    if len(probs) != count:
        raise RecipeError(f"interleave_probs: got {len(probs)} shares for {count} data sets")
    if any(p <= 0 for p in probs) or abs(sum(probs) - 1) > 1e-6:
        raise RecipeError(f"interleave_probs: got {list(probs)}, expected shares above 0 that add up to 1")
    shares = np.asarray(probs, np.float64)
    return shares / shares.sum()
