"""How good reviewed rows are, and how far two reviewers agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


class ErrorRate(NamedTuple):
    """Share of bad rows among those checked, with its 95 % interval; shares lie in 0..1."""

    checked: int
    bad: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"checked {self.checked}, {self.bad} bad: error {self.rate:.1%}, "
            f"95 % interval {self.low * 100:.1f}-{self.high:.1%}"
        )


def error_rate(checked: int, bad: int) -> ErrorRate:
    """The share of bad rows in a random sample with Wilson's score interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22, eq. for p.
    """
    if not 0 <= bad <= checked or not checked:
        raise ValueError(f"{bad} bad of {checked} checked rows is no sample")
    rate = bad / checked
    share = Z95**2 / checked
    middle = (rate + share / 2) / (1 + share)
    half = Z95 * math.sqrt(rate * (1 - rate) / checked + share / (4 * checked)) / (1 + share)
    return ErrorRate(checked, bad, rate, max(0.0, middle - half), min(1.0, middle + half))


class Agreement(NamedTuple):
    """Two reviewers on the rows both decided; `kappa` is None when chance alone would make them agree on all."""

    rows: int
    observed: float
    expected: float
    kappa: float | None


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> Agreement:
    """Agreement beyond chance of two reviewers' decisions about the same rows, in the same order.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales", Educ. Psychol. Meas. 20: (po - pe) / (1 - pe).
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} decisions cannot be compared")
    rows = len(first)
    counts = [Counter(first), Counter(second)]
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / rows
    expected = sum(counts[0][name] * counts[1][name] for name in counts[0]) / rows**2
    kappa = None if expected == 1 else (observed - expected) / (1 - expected)
    return Agreement(rows, observed, expected, kappa)
