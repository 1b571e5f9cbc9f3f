"""Choosing the next token of every row of a batch, each row by its own `Sampling`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmforge.infer.protocol import Sampling

GREEDY_BELOW = 1e-5  # temperatures under this divide logits beyond fp32's range; the draw is the likeliest token anyway
FIRST_WIDTH = 256  # likeliest tokens looked at first for top_p; almost always enough, and sorting 150,000 is slow
MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Draw:
    """What the choice of one reply's tokens depends on, besides the logits."""

    sampling: Sampling
    seed: int
    index: int  # of the reply within its request
    prompt_ids: Sequence[int]


@dataclass(frozen=True)
class Choice:
    """One chosen token; `logprob` and `top` (id, logprob) are filled where they were asked for."""

    token_id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, index: int, step: int) -> float:
    """A number in [0, 1) that depends on its arguments alone, so that a seeded reply is the same in every batch.

    Source: SplitMix64, Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195, with one round per argument.
    """
    state = seed & MASK_64
    for word in (index, step):
        state = (state + (word + 1) * 0x9E3779B97F4A7C15) & MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


class Sampler:
    """Draws for a batch of rows. Per step: repetition penalty, presence and frequency penalties, logit bias,
    temperature, top_k, top_p, min_p, in this order (that of transformers where both have the setting).
    """

    def __init__(self, draws: Sequence[Draw], vocab_size: int, device: torch.device):
        self.draws = list(draws)
        self.vocab_size, self.device = vocab_size, device
        self.seen: Tensor | None = None  # (rows, vocab) bool: in prompt or reply
        self.counts: Tensor | None = None  # (rows, vocab) times in the reply
        shape = (len(draws), vocab_size)
        if any(draw.sampling.repetition_penalty != 1 for draw in draws):
            self.seen = torch.zeros(shape, dtype=torch.bool, device=device)
            for row, draw in enumerate(draws):
                self.seen[row, torch.tensor(list(draw.prompt_ids), device=device)] = True
        if any(draw.sampling.presence_penalty or draw.sampling.frequency_penalty for draw in draws):
            self.counts = torch.zeros(shape, device=device)
        self._set_columns()

    def _set_columns(self) -> None:
        """Spread the rows' settings over (rows, 1) tensors."""

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)[:, None]

        settings = [draw.sampling for draw in self.draws]
        self.greedy = [s.temperature < GREEDY_BELOW for s in settings]
        self.is_greedy = column(self.greedy, torch.bool)
        self.temperature = column([1.0 if g else s.temperature for g, s in zip(self.greedy, settings, strict=True)])
        self.top_k = column([min(s.top_k, self.vocab_size) for s in settings], torch.long)
        self.top_p = column([s.top_p for s in settings], torch.float64)
        # Kept here too, since asking the tensors each step would make a GPU wait.
        self.max_top_k = min(max(s.top_k for s in settings), self.vocab_size)
        self.any_top_p = any(s.top_p < 1 and not g for g, s in zip(self.greedy, settings, strict=True))
        self.min_p = column([math.log(s.min_p) if s.min_p > 0 else -math.inf for s in settings])
        self.repetition = column([s.repetition_penalty for s in settings])
        self.presence = column([s.presence_penalty for s in settings])
        self.frequency = column([s.frequency_penalty for s in settings])
        bias = [(row, id, value) for row, s in enumerate(settings) for id, value in s.logit_bias.items()]
        self.bias_at = tuple(torch.tensor([b[i] for b in bias], dtype=torch.long, device=self.device) for i in (0, 1))
        self.bias = torch.tensor([b[2] for b in bias], device=self.device)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        index = torch.tensor(rows, device=self.device)
        self.draws = [self.draws[row] for row in rows]
        self.seen = None if self.seen is None else self.seen[index]
        self.counts = None if self.counts is None else self.counts[index]
        self._set_columns()

    @torch.no_grad()
    def choose(self, logits: Tensor, steps: Sequence[int]) -> list[Choice | None]:
        """One token per row from `logits` (rows, vocab); `steps` are the numbers of tokens each reply has already.

        A row whose logits are not numbers, or allow no token, gets None.
        """
        logits = logits.float()
        scores = self._penalised(logits)
        best, tokens = scores.max(dim=-1)
        if not all(self.greedy):
            draws = [uniform(draw.seed, draw.index, step) for draw, step in zip(self.draws, steps, strict=True)]
            drawn = self._drawn(scores - best[:, None], torch.tensor(draws, dtype=torch.float64, device=self.device))
            tokens = torch.where(self.is_greedy[:, 0], tokens, drawn)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        if self.counts is not None:
            self.counts.scatter_add_(1, tokens[:, None], torch.ones_like(self.temperature))
        chosen: list[Choice | None] = [
            Choice(token) if ok else None
            for token, ok in zip(tokens.tolist(), torch.isfinite(best).tolist(), strict=True)
        ]
        return self._with_logprobs(chosen, logits)

    def _penalised(self, logits: Tensor) -> Tensor:
        scores = logits
        if self.seen is not None:
            damped = torch.where(scores > 0, scores / self.repetition, scores * self.repetition)
            scores = torch.where(self.seen, damped, scores)
        if self.counts is not None:
            scores = scores - self.presence * (self.counts > 0) - self.frequency * self.counts
        if len(self.bias):
            scores = scores.index_put(self.bias_at, self.bias, accumulate=True)
        return scores

    def _drawn(self, scores: Tensor, draws: Tensor) -> Tensor:
        """Tokens by inverse CDF over the kept tokens in vocabulary order; `scores` (rows, vocab) have maximum 0.

        What is kept depends on values alone, so ties and the other rows of the batch cannot change a seeded draw.
        """
        scaled = scores / self.temperature
        threshold = self._threshold(scaled)
        kept = scaled >= threshold
        width = max(int(kept.sum(dim=-1).max()), 1)
        if width * 4 > self.vocab_size:
            ids = None
            weights = scaled.exp() * kept
        else:
            values, ids = scaled.topk(width)
            ids, order = ids.masked_fill(values < threshold, self.vocab_size).sort(dim=-1)
            weights = values.gather(1, order).exp() * (ids < self.vocab_size)
        mass = weights.double().cumsum(dim=-1)  # fp32 sums over 150,000 tokens would shift the borders
        place = torch.searchsorted(mass, draws[:, None] * mass[:, -1:], right=True).clamp(max=mass.shape[1] - 1)
        return (place if ids is None else ids.gather(1, place).clamp(max=self.vocab_size - 1))[:, 0]

    def _threshold(self, scaled: Tensor) -> Tensor:
        """(rows, 1): the lowest score that top_k, top_p and min_p leave in."""
        threshold = torch.full_like(self.min_p, -math.inf)
        if self.max_top_k:
            kth = scaled.topk(self.max_top_k).values.gather(1, (self.top_k - 1).clamp(min=0))
            threshold = torch.where(self.top_k > 0, kth, threshold)
        if self.any_top_p:
            threshold = torch.maximum(threshold, self._nucleus(scaled, threshold))
        return torch.maximum(threshold, self.min_p)

    def _nucleus(self, scaled: Tensor, floor: Tensor) -> Tensor:
        """(rows, 1): the score of the last token of the smallest set with probability top_p among scores >= floor."""
        wanted = (self.top_p < 1) & ~self.is_greedy
        target = self.top_p * (scaled.exp() * (scaled >= floor)).double().sum(dim=-1, keepdim=True)
        width = min(FIRST_WIDTH, self.vocab_size)
        while True:
            values = scaled.topk(width).values
            weights = (values.exp() * (values >= floor)).double()
            mass = weights.cumsum(dim=-1)
            if width == self.vocab_size or bool(((mass[:, -1:] >= target) | ~wanted).all()):
                break
            width = min(width * 16, self.vocab_size)
        inside = (mass - weights < target).sum(dim=-1, keepdim=True)
        return torch.where(wanted, values.gather(1, (inside - 1).clamp(min=0)), -math.inf)

    def _with_logprobs(self, chosen: list[Choice | None], logits: Tensor) -> list[Choice | None]:
        """Fill in the log-probabilities of the model itself (before penalties and temperature) where asked for."""
        asked = [row for row, draw in enumerate(self.draws) if draw.sampling.logprobs is not None and chosen[row]]
        if not asked:
            return chosen
        logprobs = logits[asked].log_softmax(dim=-1)
        for place, row in enumerate(asked):
            choice = chosen[row]
            top = logprobs[place].topk(min(self.draws[row].sampling.logprobs or 0, self.vocab_size))
            if choice is not None:
                chosen[row] = Choice(
                    choice.token_id,
                    float(logprobs[place, choice.token_id]),
                    tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
                )
        return chosen
