"""Which prompts each roll-out answers, and which of its replies an optimizer step learns from."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from llmforge.data.example import EncodedSet
from llmforge.errors import RecipeError
from llmforge.train.steps import Line, StepShape


class RolloutStep(NamedTuple):
    """One optimizer step: the roll-out it belongs to, and its place in it.

    Attributes:
        epoch, number: the roll-out, counted within the epoch.
        update: 0 for the step that draws; later ones learn from the same replies again, or from others of them.
        prompts: this rank's prompts of the whole roll-out, positions in the set of prompts.
        places: their places among the prompts of all ranks, which decide about seeds.
    """

    epoch: int
    number: int
    update: int
    prompts: list[int]
    places: list[int]


class RolloutPlan(Dataset):
    """`plan[epoch, step]` is a RolloutStep.

    An optimizer step learns from `shape.rows_per_step` replies. A roll-out draws those of `buffer` steps at once, and
    each reply is learned from `epochs` times, so a roll-out is good for `buffer * epochs` steps. Every roll-out is
    full: the last one of an epoch is filled up with prompts from its beginning.
    """

    packed = False

    def __init__(
        self,
        rows: EncodedSet,
        shape: StepShape,
        *,
        replies: int,
        buffer: int,
        epochs: int,
        seed: int,
        pad_id: int,
        line: Line | None = None,
        shuffle: bool = True,
        epoch_rows: Callable[[int], np.ndarray] | None = None,
    ):
        self.rows, self.shape, self.seed, self.pad_id, self.line = rows, shape, seed, pad_id, line
        self.replies, self.buffer, self.epochs = replies, buffer, epochs
        self.shuffle, self.epoch_rows = shuffle, epoch_rows
        per_rank = shape.rows_per_pass * shape.passes * buffer
        if per_rank % replies:
            raise RecipeError(
                f"num_generations: the {replies} replies to a prompt stay together, but a rank draws {per_rank} "
                "(per_device_train_batch_size x gradient_accumulation_steps x ppo_buffer_size); make it a multiple"
            )
        self.prompts_per_rank = per_rank // replies
        self.prompts_per_rollout = self.prompts_per_rank * shape.num_ranks
        self.updates = buffer * epochs
        self.num_rollouts = -(-len(self.prompts(0)) // self.prompts_per_rollout)
        self.num_steps = self.num_rollouts * self.updates

    def __len__(self) -> int:
        return len(self.rows)

    def prompts(self, epoch: int) -> np.ndarray:
        """The prompts an epoch takes."""
        return np.arange(len(self.rows)) if self.epoch_rows is None else self.epoch_rows(epoch)

    @lru_cache(maxsize=2)  # noqa: B019 - one plan lives as long as the process
    def order(self, epoch: int) -> np.ndarray:
        """(num_rollouts * prompts_per_rollout,) the epoch's order of prompts."""
        order = self.prompts(epoch)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        return np.resize(order, self.num_rollouts * self.prompts_per_rollout)

    def __getitem__(self, key: tuple[int, int]) -> RolloutStep:
        epoch, step = key
        number, update = divmod(step, self.updates)
        start = number * self.prompts_per_rollout + self.shape.rank * self.prompts_per_rank
        places = range(start, start + self.prompts_per_rank)
        return RolloutStep(epoch, number, update, self.order(epoch)[places].tolist(), list(places))

    def chosen(self, step: RolloutStep) -> list[int]:
        """Replies of this rank's roll-out that the step learns from, by their numbers in it."""
        count = self.prompts_per_rank * self.replies
        time, part = divmod(step.update, self.buffer)
        order = np.arange(count)
        if self.updates > 1:
            order = np.random.default_rng([self.seed, step.epoch, step.number, time, self.shape.rank]).permutation(
                order
            )
        size = count // self.buffer
        return order[part * size : (part + 1) * size].tolist()
