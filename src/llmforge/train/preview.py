"""What will be trained, as one line before the first step."""

from __future__ import annotations

from torch import nn

from llmforge.model.adapters import count_parameters


def trainable_line(model: nn.Module) -> str:
    """ "trainable: 1,949,696 of 6,245,533,696 parameters (0.03 %)"."""
    trainable, total = count_parameters(model)
    return f"trainable: {trainable:,} of {total:,} parameters ({100 * trainable / max(total, 1):.2f} %)"
