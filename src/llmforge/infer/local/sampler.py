"""Choosing the next token of every row of a batch, each row by its own `Sampling`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llmforge.infer.local.draw import Choice, Draw, is_greedy, uniform

FIRST_WIDTH = 256  # likeliest tokens looked at first for top_p; almost always enough, and sorting 150,000 is slow


class Sampler:
    """Draws for a batch of rows. Per step: repetition penalty, presence and frequency penalties, logit bias,
    temperature, top_k, top_p, min_p, in this order (that of transformers where both have the setting).
    """

    def __init__(self, draws: Sequence[Draw], vocab_size: int, device: torch.device):
        self.vocab_size, self.device = vocab_size, device
        self.draws: list[Draw] = []
        self.seen: Tensor | None = None  # (rows, vocab) bool: in prompt or reply, where a penalty asks for it
        self.counts: Tensor | None = None  # (rows, vocab) times in the reply, where a penalty asks for it
        self.arrange([], draws)

    def _set_columns(self) -> None:
        """Spread the rows' settings over (rows, 1) tensors."""

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)[:, None]

        settings = [draw.sampling for draw in self.draws]
        self.greedy = [is_greedy(s) for s in settings]
        self.is_greedy = column(self.greedy, torch.bool)
        self.temperature = column([1.0 if g else s.temperature for g, s in zip(self.greedy, settings, strict=True)])
        self.top_k = column([min(s.top_k, self.vocab_size) for s in settings], torch.long)
        self.top_p = column([s.top_p for s in settings], torch.float64)
        # Kept here too, since asking the tensors each step would make a GPU wait.
        self.max_top_k = min(max((s.top_k for s in settings), default=0), self.vocab_size)
        self.any_top_p = any(s.top_p < 1 and not g for g, s in zip(self.greedy, settings, strict=True))
        self.min_p = column([math.log(s.min_p) if s.min_p > 0 else -math.inf for s in settings])
        self.repetition = column([s.repetition_penalty for s in settings])
        self.presence = column([s.presence_penalty for s in settings])
        self.frequency = column([s.frequency_penalty for s in settings])
        bias = [(row, id, value) for row, s in enumerate(settings) for id, value in s.logit_bias.items()]
        self.bias_at = tuple(torch.tensor([b[i] for b in bias], dtype=torch.long, device=self.device) for i in (0, 1))
        self.bias = torch.tensor([b[2] for b in bias], device=self.device)

    def arrange(self, rows: Sequence[int], new: Sequence[Draw] = ()) -> None:
        """Go on with these rows only, in this order, and with new ones behind them."""
        self.draws = [*(self.draws[row] for row in rows), *new]
        settings = [draw.sampling for draw in self.draws]
        needs_seen = any(s.repetition_penalty != 1 for s in settings)
        needs_counts = any(s.presence_penalty or s.frequency_penalty for s in settings)
        self.seen = self._grown(self.seen, rows, new, torch.bool) if needs_seen else None
        self.counts = self._grown(self.counts, rows, new, torch.float32) if needs_counts else None
        self._set_columns()

    def _grown(self, old: Tensor | None, rows: Sequence[int], new: Sequence[Draw], dtype: torch.dtype) -> Tensor:
        """State of kept rows, and that of new ones from their tokens. Rows kept before anybody asked are made anew."""
        kept = [] if old is None else rows
        grown = torch.zeros(len(self.draws), self.vocab_size, dtype=dtype, device=self.device)
        if kept and old is not None:
            grown[: len(kept)] = old[torch.tensor(kept, device=self.device)]
        for row, draw in enumerate(self.draws[len(kept) :], start=len(kept)):
            if dtype == torch.bool:
                grown[row, self._ids([*draw.prompt_ids, *draw.reply_ids])] = True
            else:
                grown[row] = torch.bincount(self._ids(draw.reply_ids), minlength=self.vocab_size)
        return grown

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def choose(self, logits: Tensor, steps: Sequence[int]) -> list[Choice | None]:
        """One token per row from `logits` (rows, vocab); `steps` are the numbers of tokens each reply has already.

        A row whose logits are not numbers, or allow no token, gets None.
        """
        logits = logits.float()
        scores = self.penalised(logits)
        best, tokens = scores.max(dim=-1)
        if not all(self.greedy):
            draws = [uniform(draw.seed, draw.index, step) for draw, step in zip(self.draws, steps, strict=True)]
            drawn = self._drawn(scores - best[:, None], torch.tensor(draws, dtype=torch.float64, device=self.device))
            tokens = torch.where(self.is_greedy[:, 0], tokens, drawn)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        if self.counts is not None:
            self.counts.scatter_add_(1, tokens[:, None], torch.ones_like(self.temperature))
        return self.with_logprobs(_chosen(best, tokens), logits)

    def penalised(self, logits: Tensor) -> Tensor:
        """Logits (rows, vocab) after penalties and logit bias."""
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

    def with_logprobs(self, chosen: list[Choice | None], logits: Tensor) -> list[Choice | None]:
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


def likeliest(logits: Tensor) -> list[Choice | None]:
    """What a greedy row takes, one token per place of `logits` (places, vocab); None as `Sampler.choose` has it."""
    return _chosen(*logits.float().max(dim=-1))


def _chosen(best: Tensor, tokens: Tensor) -> list[Choice | None]:
    return [
        Choice(token) if ok else None for token, ok in zip(tokens.tolist(), torch.isfinite(best).tolist(), strict=True)
    ]
