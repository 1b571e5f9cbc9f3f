"""The mathematics of learning from preferences: rewards, pairs, verdicts. Tensors in, losses per pair or reply out.

Names: `chosen` and `rejected` are log-probabilities of replies under the policy, `ref_chosen` and `ref_rejected` those
under the reference, in nats; sums over a reply's tokens, or means where PER_TOKEN says so.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmforge.data.example import FILL
from llmforge.data.plan import Batch

PER_TOKEN = ("ipo", "orpo", "simpo")  # these compare means over a reply's tokens
WITHOUT_REFERENCE = ("orpo", "simpo")


class Pairs(NamedTuple):
    """Rows of a batch, (pairs,) each: the one with the larger mark, and the other."""

    better: np.ndarray
    worse: np.ndarray


def ranked_pairs(batch: Batch) -> Pairs:
    """All pairs of replies to one prompt whose ranks differ; four replies ranked 3, 2, 2, 1 give five."""
    found: list[tuple[int, int]] = []
    for start, end in _runs(batch.group):
        found += [(i, j) for i in range(start, end) for j in range(start, end) if batch.marks[i] > batch.marks[j]]
    better, worse = np.array(found, np.int64).reshape(-1, 2).T
    return Pairs(better, worse)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(bounds)) if len(values) else []


# Direct preference optimisation


def preference_losses(
    kind: str,
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
) -> Tensor:
    """(pairs,) losses that compare a policy with a reference.

    With h = (chosen - ref_chosen) - (rejected - ref_rejected):
        sigmoid: -log sigma(beta h), of which a share `smoothing` of the pairs counts the other way round
            (Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, cDPO).
        hinge: max(0, 1 - beta h) (Zhao et al. 2023, SLiC, arXiv:2305.10425).
        ipo: (h - 1 / (2 beta))^2, of means over tokens (Azar et al. 2023, arXiv:2310.12036, eq. 17).
    """
    ahead = (chosen - ref_chosen) - (rejected - ref_rejected)
    if kind == "sigmoid":
        return -F.logsigmoid(beta * ahead) * (1 - smoothing) - F.logsigmoid(-beta * ahead) * smoothing
    if kind == "hinge":
        return torch.relu(1 - beta * ahead)
    if kind == "ipo":
        return (ahead - 1 / (2 * beta)) ** 2
    raise ValueError(f"{kind!r} is no loss of a policy and a reference")


def odds_ratio_losses(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """(pairs,) -chosen - beta log sigma(log odds of chosen - log odds of rejected), of means over tokens.

    Source: Hong et al. 2024, ORPO, arXiv:2403.07691, eq. 6 and 7.
    """
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(log_odds)


def simpo_losses(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """(pairs,) -log sigma(beta (chosen - rejected) - gamma), of means over tokens.

    Source: Meng et al. 2024, SimPO, arXiv:2405.14734, eq. 6.
    """
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def kto_losses(gain: Tensor, desired: Tensor, kl: Tensor | float, *, beta: float) -> Tensor:
    """(replies,) 1 - sigma(beta (gain - kl)) of desired replies, 1 - sigma(beta (kl - gain)) of the others.

    Args:
        gain: log-probability under the policy less that under the reference.
        desired: (replies,) bool.
        kl: the reference point, at least 0 and without a gradient.

    Source: Ethayarajh et al. 2024, KTO, arXiv:2402.01306, eq. 8.
    """
    sign = torch.where(desired, 1.0, -1.0).to(gain.dtype)
    return 1 - torch.sigmoid(beta * sign * (gain - kl))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0; a reply the policy is sure of must not make an infinity."""
    return torch.log(-torch.expm1(x.clamp(max=-1e-7)))


# Reward models


class Compared(NamedTuple):
    """Which of a batch's values are compared: flat places of `left` and `right`, (n,), and the pair of each."""

    left: np.ndarray
    right: np.ndarray
    pair: np.ndarray


def reward_losses(values: Tensor, batch: Batch, pairs: Pairs, kind: str) -> Tensor:
    """(pairs,) ranking losses -log sigma(better - worse), of a batch laid out with shift 0.

    With d the first token where two replies differ and e the longer one's end:
        token: the mean over the tokens from d to e; the shorter reply has values of its filling there.
        mean: of the two means from d to each reply's own end.
        end: of the values at the two ends.

    Args:
        values: (N,) of the batch's targets.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; per token as in DeepSpeed-Chat's `reward_model.py`.
    """
    spans = [_span(batch, i, j) for i, j in zip(*pairs, strict=True)]
    if kind == "token":
        compared = _side_by_side(spans)
        losses = -F.logsigmoid(values[_index(compared.left, values)] - values[_index(compared.right, values)])
        return _means(losses, compared.pair, len(spans))
    if kind == "mean":
        better = [np.arange(s.left + s.differ, s.left + s.left_end) for s in spans]
        worse = [np.arange(s.right + s.differ, s.right + s.right_end) for s in spans]
        return -F.logsigmoid(_mean_values(values, better) - _mean_values(values, worse))
    ends = end_places(batch)
    return -F.logsigmoid(values[_index(ends[pairs.better], values)] - values[_index(ends[pairs.worse], values)])


def end_places(batch: Batch) -> np.ndarray:
    """(num_rows,) where in `batch.target` each row's last real token stands: its value is the row's score."""
    real = np.flatnonzero(batch.target != FILL)
    last = np.searchsorted(batch.row[real], np.arange(len(batch.marks)), side="right") - 1
    return real[last]


class _Span(NamedTuple):
    """Two replies: where their targets begin, and from there the first difference and each one's own end."""

    left: int
    right: int
    differ: int
    left_end: int
    right_end: int


def _span(batch: Batch, better: int, worse: int) -> _Span:
    (left, left_stop), (right, right_stop) = (np.searchsorted(batch.row, [i, i + 1]) for i in (better, worse))
    a, b = batch.target[left:left_stop], batch.target[right:right_stop]
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    differ = int(differs[0]) if len(differs) else shorter
    # A reply that goes on where the other one ends differs there; its end token stands for the difference.
    ends = [int((part != FILL).sum()) for part in (a, b)]
    return _Span(int(left), int(right), min(differ, *(end - 1 for end in ends)), *ends)


def _side_by_side(spans: list[_Span]) -> Compared:
    lengths = [max(s.left_end, s.right_end) - s.differ for s in spans]
    steps = [np.arange(s.differ, s.differ + n) for s, n in zip(spans, lengths, strict=True)]
    empty = np.zeros(0, np.int64)
    return Compared(
        np.concatenate([empty, *(s.left + step for s, step in zip(spans, steps, strict=True))]),
        np.concatenate([empty, *(s.right + step for s, step in zip(spans, steps, strict=True))]),
        np.repeat(np.arange(len(spans)), lengths),
    )


def _mean_values(values: Tensor, places: list[np.ndarray]) -> Tensor:
    flat = np.concatenate([np.zeros(0, np.int64), *places])
    owner = np.repeat(np.arange(len(places)), [len(p) for p in places])
    return _means(values[_index(flat, values)], owner, len(places))


def _means(values: Tensor, owner: np.ndarray, count: int) -> Tensor:
    sums = values.new_zeros(count).index_add(0, _index(owner, values), values)
    return sums / torch.from_numpy(np.maximum(np.bincount(owner, minlength=count), 1)).to(values)


def _index(places: np.ndarray, values: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(places, np.int64)).to(values.device)
