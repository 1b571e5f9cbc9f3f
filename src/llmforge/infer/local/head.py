"""The output head on a CPU, a stretch of the vocabulary at a time.

The few rows of a step give a product that is short and very wide; MKL computes it as if it were large. In stretches of
2,048 tokens it took 19 ms instead of 23 for 16 rows, 13 instead of 17 for 4 (vocabulary 49,152, width 576, one core).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmforge.infer.local.live import base_of

STRETCH = 2048  # tokens


def split_head(model: Any) -> None:
    """Compute the model's head so from now on; only on a CPU, and only a plain head that nobody has changed."""
    head = base_of(model).get_output_embeddings()
    is_plain = type(head) is nn.Linear and head.bias is None and "forward" not in vars(head)
    if is_plain and head.weight.device.type == "cpu" and len(head.weight) > STRETCH:
        head.forward = partial(_forward, head)


def _forward(head: nn.Linear, x: Tensor) -> Tensor:
    return torch.cat([F.linear(x, part) for part in head.weight.split(STRETCH)], -1)
