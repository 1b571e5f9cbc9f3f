"""An exponential moving average of weights, the third model that a PPO run saves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """average <- decay x average + (1 - decay) x weights, after each optimizer step.

    Source: DeepSpeed-Chat's utils.py, moving_average, with its decay of 0.992.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        for name, average in self.weights.items():
            average.lerp_(weights[name].detach().to(average.device, average.dtype), 1 - self.decay)

    @property
    def num_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.weights.values())
