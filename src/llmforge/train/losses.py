"""What a stage hands to the trainer: sums of losses, never means, so that the trainer divides by the right count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from llmforge.config.schema import Recipe
    from llmforge.data.build import DataSets
    from llmforge.data.plan import Batch
    from llmforge.model.loading import LoadedModel
    from llmforge.train.steps import Line, StepShape
    from llmforge.train.trainer import ForgeTrainer


@dataclass(frozen=True)
class LossSum:
    """The loss of one batch, summed over what the stage counts (tokens, pairs), and further sums to report.

    `counts` says what a metric's mean runs over where that is not the stage's count.
    """

    sum: Tensor  # scalar, nats
    metrics: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What a stage can look at before the first step."""

    loaded: LoadedModel
    data: DataSets
    line: Line | None  # how rows share a pass, None: padded
    pad_id: int
    folder: Path
    resumed: bool
    num_ranks: int
    rank: int
    say: Callable[[str], None]


class Stage:
    """One way to train. What differs between stages stands in the stage's file and nowhere else.

    Attributes:
        packs: whether rows share a sequence.
        shift: which hidden state a label belongs to: 1 the one before it, which predicts it; 0 its own.
        aside: mark of members of a group that go through the model apart from the others, as `Batch.aside`.
        looks_ahead: `begin_step` does something, for which it needs all batches of a step, or of an evaluation.
        per_token: the loss is a mean over tokens, so that perplexity means something.
    """

    packs: bool = False
    shift: int = 1
    aside: int | None = None
    looks_ahead: bool = False
    per_token: bool = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def check(self, data: DataSets) -> None:
        """Raises:
        RecipeError: the rows teach nothing at this stage.
        """

    def longest_row(self, data: DataSets) -> int:
        """Tokens of the longest row that goes through the model."""
        return int(data.train.lengths.max())

    def extend(self, model: Any) -> None:
        """Add what the stage trains beside the model's own weights; called after loading, on every rank."""

    def prepare(self, start: Start) -> None:
        """What is computed once, before the first step."""

    def trainer(self, start: Start, shape: StepShape, options: dict[str, Any]) -> ForgeTrainer | None:
        """A loop of the stage's own, made from what all trainers take; None for the ordinary one."""
        return None

    def begin(self, start: Start) -> None:
        """What is computed from the rows before the first step, after their number was said."""

    def begin_step(self, model: nn.Module, batches: Sequence[Batch], add_up: Callable[..., list[float]]) -> None:
        """Look at all batches of this rank before the first loss of a step; `add_up` sums numbers over the ranks."""

    def count(self, batch: Batch) -> int:
        """What the mean loss runs over in this batch."""
        raise TypeError(f"{type(self).__name__} counts nothing")

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """The batch's summed loss, with a gradient."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def score(self, model: nn.Module, batch: Batch) -> LossSum:
        """The same on held-out rows, without a gradient."""
        return self.loss(model, batch)
