"""The reward on held-out prompts, drawn with the same seeds each time: two evaluations differ by the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmforge.data.example import EncodedSet, Example
from llmforge.train.rl.rewards import Rewards
from llmforge.train.rl.rollout import Roller, seed_of
from llmforge.train.rl.samples import Sample


class HeldOut:
    """Prompts that training never sees."""

    def __init__(self, sets: Mapping[str, EncodedSet], examples: Mapping[str, Sequence[Example]], seed: int):
        self.sets, self.examples, self.seed = sets, examples, seed

    def draw(self, roller: Roller, rank: int, ranks: int) -> list[tuple[int, Sample]]:
        """(place over all sets, reply) of this rank's share."""
        found: list[tuple[int, Sample]] = []
        start = 0
        for name, prompts in self.sets.items():
            mine = list(range(rank, len(prompts), ranks))
            seeds = [seed_of(self.seed, start + row) for row in mine]
            drawn = roller.draw(prompts, self.examples[name], mine, seeds, 1) if mine else []
            found += [(start + row, sample) for row, sample in zip(mine, drawn, strict=True)]
            start += len(prompts)
        return found

    def measure(
        self, roller: Roller, rewards: Rewards, gather: Callable[[list[Any]], list[Any]], rank: int, ranks: int
    ) -> tuple[list[float], dict[str, float]]:
        """The reward of each prompt in their order, and means over all: reward, its standard error, parts, length."""
        drawn = self.draw(roller, rank, ranks)
        sums, parts = rewards([sample for _, sample in drawn])
        rows = [
            (place, reward, {name: scores[i] for name, scores in parts.items()}, sample.num_tokens, sample.ended)
            for i, ((place, sample), reward) in enumerate(zip(drawn, sums, strict=True))
        ]
        rows = sorted(gather(rows), key=lambda row: row[0])
        each = [row[1] for row in rows]
        metrics = {"reward": mean(each), "reward_se": standard_error(each)}
        if len(rewards.sources) > 1:
            metrics |= {f"reward_{name}": mean([row[2][name] for row in rows]) for name in rows[0][2]}
        metrics |= {
            "reply_tokens": mean([float(row[3]) for row in rows]),
            "ended_share": mean([float(row[4]) for row in rows]),
        }
        return each, metrics


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(len(numbers), 1)


def standard_error(numbers: Sequence[float]) -> float:
    """Of the mean; 0 for fewer than two numbers."""
    if len(numbers) < 2:
        return 0.0
    centre = mean(numbers)
    return math.sqrt(sum((x - centre) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers))


def gain(first: Sequence[float], now: Sequence[float]) -> dict[str, float]:
    """How much the reward rose since the first evaluation, prompt by prompt, and the standard error of that."""
    rise = [b - a for a, b in zip(first, now, strict=True)]
    return {"reward_gain": mean(rise), "reward_gain_se": standard_error(rise)}
