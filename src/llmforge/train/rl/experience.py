"""The replies of one roll-out and what is known about each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmforge.data.example import IGNORE, Encoded, EncodedSet
from llmforge.data.plan import Batch
from llmforge.train.rl.advantages import length_mask
from llmforge.train.rl.samples import Sample


@dataclass
class Experience:
    """Flat over all actions (tokens of replies), replies one after the other.

    Attributes:
        rows: prompt and reply of each sample; the reply's tokens are the labels.
        offsets: (replies + 1,) reply i has the actions [offsets[i], offsets[i + 1]).
        rewards: (replies,) as the sources gave them, weighted.
        numbers: (actions,) each, by name: logprobs, ref_logprobs, values, advantages, returns.
    """

    rows: EncodedSet
    offsets: np.ndarray
    rewards: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Sample], rewards: Sequence[float]) -> Experience:
        rows = [
            Encoded([*s.prompt_ids, *s.reply_ids], [IGNORE] * len(s.prompt_ids) + list(s.reply_ids)) for s in samples
        ]
        offsets = np.cumsum([0, *(len(s.reply_ids) for s in samples)])
        return cls(EncodedSet.of(rows), offsets, torch.tensor(rewards, dtype=torch.float32))

    @property
    def lengths(self) -> Tensor:
        """(replies,) actions of each reply."""
        return torch.from_numpy(np.diff(self.offsets))

    @property
    def mask(self) -> Tensor:
        """(replies, longest) True on actions."""
        return length_mask(self.lengths, int(self.lengths.max()))

    def padded(self, numbers: Tensor) -> Tensor:
        """(actions,) -> (replies, longest), 0 behind each end."""
        mask = self.mask
        return torch.zeros(mask.shape, dtype=numbers.dtype).masked_scatter(mask, numbers)

    def flat(self, numbers: Tensor) -> Tensor:
        """(replies, longest) -> (actions,)."""
        return numbers[self.mask]

    def sum_per_reply(self, numbers: Tensor) -> Tensor:
        """(actions,) -> (replies,)."""
        return self.padded(numbers).sum(dim=1)

    def places(self, batch: Batch) -> Tensor:
        """(N,) the action that each entry of `batch.state` belongs to."""
        parts = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in batch.rows]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]))

    def at(self, name: str, batch: Batch, device: torch.device) -> Tensor:
        """(N,) one kind of numbers for the entries of a batch."""
        return self.numbers[name][self.places(batch)].to(device)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        ids, labels = (torch.from_numpy(np.array(part)) for part in (self.rows.input_ids, self.rows.labels))
        about = {"ids": ids, "labels": labels, "rows": torch.from_numpy(np.array(self.rows.offsets))}
        about |= {"offsets": torch.from_numpy(np.array(self.offsets)), "rewards": self.rewards}
        return about | {f"numbers.{name}": numbers.contiguous() for name, numbers in self.numbers.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Experience:
        ids, labels, offsets = (tensors[name].numpy() for name in ("ids", "labels", "rows"))
        rows = EncodedSet(ids, labels, offsets, np.arange(len(offsets) - 1))
        numbers = {
            name.removeprefix("numbers."): value for name, value in tensors.items() if name.startswith("numbers.")
        }
        return cls(rows, tensors["offsets"].numpy(), tensors["rewards"], numbers)
