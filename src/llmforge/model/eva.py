"""EVA's initial LoRA weights (Paischer et al. 2024): A spans what the layers see of the training rows. Needs data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights

from llmforge.data.example import Encoded
from llmforge.errors import RecipeError

MAX_ROWS = 256
ROWS_PER_BATCH = 8


def init_eva(model: Any, rows: Sequence[Encoded]) -> None:
    """Set A of a fresh adapter with `lora_init: eva` from the first training rows; every rank computes the same.

    Ranks are not shifted between layers (rho 1), so a checkpoint fits the adapter that the recipe describes.

    Raises:
        RecipeError: too few rows, or weights spread by ZeRO-3.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise RecipeError(
            "lora_init: eva needs whole weights on every rank, ZeRO-3 spreads them; use stage 2 or another init"
        )
    device = next(model.parameters()).device
    rank = model.active_peft_config.r
    batches = list(_batches(rows, device))
    if not batches or int(batches[0]["attention_mask"].sum()) < rank:
        raise RecipeError(f"lora_init: eva needs at least lora_rank = {rank} tokens in its first rows")
    training = model.training
    initialize_lora_eva_weights(model.eval(), batches, gather_distributed_inputs=False, show_progress_bar=False)
    model.train(training)


def _batches(rows: Sequence[Encoded], device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    # A last batch that is too small for the rank would be refused, so only whole ones unless there is just one.
    count = min(len(rows), MAX_ROWS)
    for start in range(0, max(count - ROWS_PER_BATCH + 1, 1), ROWS_PER_BATCH):
        chosen = [rows[i] for i in range(start, min(start + ROWS_PER_BATCH, count))]
        width = max((len(row.input_ids) for row in chosen), default=0)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(chosen):
            ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
            mask[i, : len(row.input_ids)] = 1
        yield {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
