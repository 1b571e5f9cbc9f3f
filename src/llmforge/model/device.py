"""Which device computes, and in which precision."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llmforge.config.schema import ModelConfig, Recipe
from llmforge.errors import RecipeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(config: ModelConfig) -> torch.device:
    """The recipe's device; auto is this rank's GPU where torch can use it, and the CPU where there is no card.

    Raises:
        RecipeError: a card that torch cannot use, unless the recipe says `device: cpu`.
    """
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        try:
            torch.zeros(1, device=device).add_(1).item()
        except RuntimeError as error:
            raise _unusable(torch.cuda.get_device_name(device), str(error).splitlines()[0]) from None
        return device
    if _card_present():
        raise _unusable(
            "an NVIDIA card", f"this torch is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'}"
        )
    if config.device == "cuda":
        raise RecipeError("device: got 'cuda', but this machine has no card that torch can use")
    return torch.device("cpu")


def tell_deepspeed() -> None:
    """For callers of `save_pretrained`, which imports DeepSpeed; that writes to stdout when it has to guess."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def mixed_precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The precision training computes in: keys bf16 and fp16, else bf16 where the card has it, else fp16; CPU: fp32."""
    if device.type == "cpu":
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = recipe.train.bf16 if recipe.train.bf16 is not None else has_bf16 and not recipe.train.fp16
    fp16 = recipe.train.fp16 if recipe.train.fp16 is not None else not has_bf16 and not bf16
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32


def base_dtype(recipe: Recipe, device: torch.device, *, for_training: bool) -> torch.dtype:
    """The precision the base's weights are kept in.

    Frozen weights are kept as training computes; weights that all learn are kept in fp32, or in bf16 with `pure_bf16`.
    """
    if not for_training:
        if recipe.model.infer_dtype != "auto":
            return DTYPES[recipe.model.infer_dtype]
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if recipe.finetune.pure_bf16:
        return torch.bfloat16
    return torch.float32 if recipe.finetune.finetuning_type == "full" else mixed_precision(recipe, device)


def _card_present() -> bool:
    """Whether the driver shows a card; one that was hidden on purpose does not count."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and Path("/dev/nvidia0").exists()


def _unusable(card: str, reason: str) -> RecipeError:
    return RecipeError(
        f"device: torch {torch.__version__} cannot use {card} ({reason}). Install the torch build that "
        "matches the driver (README, NVIDIA cards), or say device: cpu"
    )
