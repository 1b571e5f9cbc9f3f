"""Running out of memory ends in one sentence and numbered changes of keys, the cheapest first."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from llmforge.config.schema import Recipe
from llmforge.errors import RunError

CPU_SIGNS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def card_peaks(accelerator: Accelerator) -> dict[str, Any]:
    """Names of the ranks' cards and their highest memory, allocated and reserved; {} on CPU. All ranks call it."""
    if accelerator.device.type != "cuda":
        return {}
    device = accelerator.device
    mine = [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
    peaks = accelerator.gather(torch.tensor([mine], device=device)).T.tolist()  # (2, ranks) bytes
    name = torch.cuda.get_device_name(device)
    return {"cards": [name] * len(peaks[0]), "peak_allocated_bytes": peaks[0], "peak_reserved_bytes": peaks[1]}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the card's or the machine's memory is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in CPU_SIGNS)


def out_of_memory(recipe: Recipe, phase: str, longest_row: int) -> RunError:
    """The error to end with; `longest_row` is in tokens, 0 when the data was not read yet."""
    where = "the card's" if torch.cuda.is_available() and recipe.model.device != "cpu" else "the machine's"
    lines = [f"{phase}: {where} memory is full. Change one key at a time, in this order:"]
    lines += [f"  {number}. {change}" for number, change in enumerate(changes(recipe, longest_row), start=1)]
    return RunError("\n".join(lines))


def changes(recipe: Recipe, longest_row: int) -> list[str]:
    """Key changes that lower the need for memory and are not made yet."""
    train, finetune, found = recipe.train, recipe.finetune, []
    size, passes = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if size > 1:
        half = -(-size // 2)
        found.append(
            f"per_device_train_batch_size: {half} and gradient_accumulation_steps: {-(-size * passes // half)} "
            f"(now {size} and {passes}; the result is the same)"
        )
    if not train.gradient_checkpointing:
        found.append("gradient_checkpointing: true (a third slower, the result is the same)")
    longest = min(longest_row or recipe.data.cutoff_len, recipe.data.cutoff_len)
    if longest > 128:
        found.append(f"cutoff_len: {longest // 2} (the longest row has {longest} tokens; longer rows are then cut)")
    if finetune.finetuning_type in ("full", "freeze"):
        found.append(f"finetuning_type: lora (now {finetune.finetuning_type})")
    elif recipe.model.quantization_bit is None and torch.cuda.is_available():
        found.append("quantization_bit: 4 (needs bitsandbytes)")
    if torch.cuda.device_count() > 1 and train.deepspeed is None:
        found.append("deepspeed: configs/deepspeed/z3.json (spreads the model over the cards)")
    found.append("a smaller model_name_or_path")
    return found
