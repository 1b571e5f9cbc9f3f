"""What the choice of a token depends on besides the logits, and what is chosen. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmforge.infer.protocol import Sampling

MASK_64 = (1 << 64) - 1
GREEDY_BELOW = 1e-5  # temperatures under this divide logits beyond fp32's range; the draw is the likeliest token anyway


@dataclass(frozen=True)
class Draw:
    """What the choice of one reply's tokens depends on, besides the logits."""

    sampling: Sampling
    seed: int
    index: int  # of the reply within its request
    prompt_ids: Sequence[int]
    reply_ids: Sequence[int] = ()  # the reply so far; it may grow beside the sampler


@dataclass(frozen=True)
class Choice:
    """One chosen token; `logprob` and `top` (id, logprob) are filled where they were asked for."""

    token_id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is always taken."""
    return sampling.temperature < GREEDY_BELOW


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
