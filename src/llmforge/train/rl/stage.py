"""What the stages ppo and grpo share: which models they need, and how the trainer hands them a roll-out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from llmforge.config.schema import Recipe
from llmforge.data.plan import Batch
from llmforge.train.losses import LossSum
from llmforge.train.rl.advantages import Gather
from llmforge.train.rl.experience import Experience
from llmforge.train.rl.objective import is_clipped
from llmforge.train.rl.state import RolloutState


class RolloutStage(ABC):
    """A stage that learns from replies it draws itself."""

    packs = False
    has_critic: bool
    default_replies: int  # to a prompt, where the recipe does not say

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.rl = recipe, recipe.rl
        self.experience: Experience | None = None
        self.ratio_max = 0.0  # largest ratio of new to old probability in the passes of a step

    @property
    def replies(self) -> int:
        return self.rl.num_generations or self.default_replies

    @property
    def ema_decay(self) -> float:
        """Of the averaged actor; 0 for none."""
        return 0.0

    def critic_rate(self, learning_rate: float) -> float:
        """Peak learning rate of the critic."""
        return learning_rate

    def first_state(self) -> RolloutState:
        return RolloutState()

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed."""

    @abstractmethod
    def judge(self, experience: Experience, state: RolloutState, gather: Gather) -> None:
        """Add `advantages` (and `returns`) to the numbers of a roll-out."""

    @abstractmethod
    def count(self, batch: Batch) -> int: ...

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossSum: ...

    def learn_from(self, experience: Experience) -> None:
        """The roll-out that the next batches come from."""
        self.experience, self.ratio_max = experience, 0.0

    def now(self, name: str, batch: Batch, device: torch.device) -> Tensor:
        """(N,) numbers of the roll-out for the batch's entries."""
        assert self.experience is not None
        return self.experience.at(name, batch, device)

    @torch.no_grad()
    def clipped(self, logprobs: Tensor, old: Tensor) -> Tensor:
        """How many actions are beyond the clip range; the largest ratio is remembered."""
        if len(logprobs):
            self.ratio_max = max(self.ratio_max, float(torch.exp(logprobs - old).max()))
        return is_clipped(logprobs, old, self.rl.ppo_clip).sum().float()
