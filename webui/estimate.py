"""What a run will take, guessed before it starts: steps, memory, and time where a run of the same model was measured.

Memory is a sum of parts that are known well (weights, gradients, optimizer) and one that is not (what a forward pass
keeps); the page says "about". Whoever needs it exact sets train_memory_gb, which the run keeps to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmforge.config.schema import Recipe
from llmforge.webui.choices import Shape

ADAM_BYTES = 16  # of a weight that learns: itself, its gradient and Adam's two moments, in fp32
KEPT_BY_HIDDEN, KEPT_BY_INNER = 12, 4  # numbers a layer keeps for the backward pass, per token
BASE_BYTES = 600 << 20  # of the libraries
TOKENS = re.compile(r"(\d+) tokens a row, longest (\d+)")


@dataclass(frozen=True)
class Guess:
    """Of one run; None where nothing is known. Memory in bytes, time in seconds."""

    rows: int | None = None
    steps: int | None = None
    tokens: int | None = None
    memory: int | None = None
    seconds: float | None = None


def guess(recipe: Recipe, rows: int | None, told: Iterable[str], shape: Shape | None, speed: float | None) -> Guess:
    """Args:
    rows: of all data sets together.
    told: lines of the check, which hold the mean and the longest row in tokens.
    speed: tokens per second of earlier runs of the same model on this machine.
    """
    if rows is None:
        return Guess()
    train, data = recipe.train, recipe.data
    if data.max_samples:
        rows = min(rows, data.max_samples * max(len(data.dataset), 1))
    held = data.val_size if data.val_size >= 1 else data.val_size * rows
    kept = max(int(rows - held), 1)
    per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
    an_epoch = math.ceil(kept / per_step)
    steps = train.max_steps if train.max_steps > 0 else math.ceil(an_epoch * train.num_train_epochs)
    lengths = [(int(m[1]), int(m[2])) for line in told if (m := TOKENS.search(line))]
    mean = min(max((mean for mean, _ in lengths), default=0), data.cutoff_len)
    longest = min(max((longest for _, longest in lengths), default=data.cutoff_len), data.cutoff_len)
    tokens = steps * per_step * mean if mean else None
    return Guess(
        rows=kept,
        steps=steps,
        tokens=tokens,
        memory=_memory(recipe, shape, longest) if shape else None,
        seconds=tokens / speed if tokens and speed else None,
    )


def _memory(recipe: Recipe, shape: Shape, longest: int) -> int:
    """Weights, what learns, and one forward pass of the longest rows."""
    kind = recipe.finetune.finetuning_type
    bits = recipe.model.quantization_bit
    base: float = shape.params * (bits / 8 if bits else 4)
    learns: float
    layer = 8 * shape.hidden + 3 * (shape.hidden + shape.inner)
    if kind == "full":
        base, learns = 0, shape.params
    elif kind == "freeze":
        learns = shape.params * min(abs(recipe.finetune.freeze_trainable_layers) / max(shape.layers, 1), 1)
    else:
        learns = recipe.finetune.lora_rank * shape.layers * layer
    tokens = recipe.train.per_device_train_batch_size * longest
    kept = KEPT_BY_HIDDEN * shape.hidden + KEPT_BY_INNER * shape.inner
    layers = 1 if recipe.train.gradient_checkpointing else shape.layers
    states = tokens * 4 * (layers * kept + shape.layers * shape.hidden)
    return int(BASE_BYTES + base + learns * ADAM_BYTES + states)
