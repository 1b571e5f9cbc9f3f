"""What a run of PPO or GRPO remembers between roll-outs, beside its weights; it goes into every checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

REWARD_EMA = 0.9  # share of the past in the logged average of rewards, as in DeepSpeed-Chat
PATIENCE = 10  # roll-outs from the start without two different rewards, after which there is nothing to learn from


@dataclass
class RolloutState:
    """Running numbers.

    Attributes:
        kl_coef: weight of the KL penalty, which ppo_target moves.
        reward_ema: average of the rewards, None before the first roll-out.
        count, mean, squares: of all scores so far: number, mean, summed squared distances from it.
        alike: roll-outs in a row whose rewards were all equal; `varied` says that others came before.
        numbers: of the roll-out in use, for the log.
        first_eval: reward of each held-out prompt in the first evaluation.
    """

    kl_coef: float = 0.0
    reward_ema: float | None = None
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    alike: int = 0
    varied: bool = False
    numbers: dict[str, float] = field(default_factory=dict)
    first_eval: list[float] = field(default_factory=list)

    def take_rewards(self, rewards: Sequence[float]) -> None:
        """Note the rewards of one roll-out over all ranks."""
        mean = sum(rewards) / len(rewards)
        before = mean if self.reward_ema is None else self.reward_ema
        self.reward_ema = REWARD_EMA * before + (1 - REWARD_EMA) * mean
        for reward in rewards:  # Welford 1962
            self.count += 1
            distance = reward - self.mean
            self.mean += distance / self.count
            self.squares += distance * (reward - self.mean)
        if max(rewards) > min(rewards):
            self.alike, self.varied = 0, True
        else:
            self.alike += 1

    @property
    def deviation(self) -> float:
        """Standard deviation of all scores so far; 1 while they are all the same."""
        deviation = math.sqrt(self.squares / max(self.count - 1, 1))
        return deviation if deviation > 0 else 1.0

    def dumps(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def loads(cls, text: str) -> RolloutState:
        return cls(**json.loads(text))
