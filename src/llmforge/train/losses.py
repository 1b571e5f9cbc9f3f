"""What a stage hands to the trainer: sums of losses, never means, so that the trainer divides by the right count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llmforge.config.schema import Recipe
    from llmforge.data.plan import Batch


@dataclass(frozen=True)
class LossSum:
    """The loss of one batch, summed over what the stage counts (tokens, pairs), and further sums to report."""

    sum: Tensor  # scalar, nats
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Stage(Protocol):
    """One way to train. What differs between stages stands in the stage's file and nowhere else."""

    packs: bool  # whether rows share a sequence

    def __init__(self, recipe: Recipe) -> None: ...

    def count(self, batch: Batch) -> int:
        """What the mean loss runs over in this batch."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The batch's summed loss, with a gradient."""
        ...
