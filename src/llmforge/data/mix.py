"""Joining data sets: one after the other, or interleaved by shares; and the table of what each contributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmforge.data.example import EncodedSet, Example
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


@dataclass(frozen=True)
class Share:
    """What one data set contributes: rows, their tokens, tokens that are learned, and its part of all tokens."""

    dataset: str
    rows: int
    tokens: int
    learned: int
    share: float

    def __str__(self) -> str:
        return (
            f"{self.dataset}: {self.rows} rows, {self.tokens} tokens ({self.share:.1%}), {self.learned} of them learned"
        )


def shares(encoded: EncodedSet, examples: Sequence[Example]) -> list[Share]:
    """The table of data sets, in the order in which they appear. A packed row counts for the text it begins with."""
    from llmforge.data.example import IGNORE

    names = list(dict.fromkeys(example.dataset for example in examples))
    number = {name: i for i, name in enumerate(names)}
    owner = np.array([number[examples[i].dataset] for i in encoded.examples], np.int64)
    learned = np.add.reduceat(encoded.labels != IGNORE, encoded.offsets[:-1]) if len(encoded) else np.zeros(0)
    rows, tokens, targets = (
        np.bincount(owner, weights=weights, minlength=len(names)).astype(int)
        for weights in (None, encoded.lengths, learned)
    )
    total = max(int(tokens.sum()), 1)
    return [Share(n, int(rows[i]), int(tokens[i]), int(targets[i]), tokens[i] / total) for n, i in number.items()]
