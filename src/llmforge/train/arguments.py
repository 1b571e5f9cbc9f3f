"""A recipe's keys as transformers.TrainingArguments: what Forge does itself is left out, the rest goes on unchanged."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError, nearest, require
from llmforge.model.device import mixed_precision

# Keys that the class knows too and Forge acts on itself: the step plan accumulates, resuming and trackers are our own.
OURS = ("gradient_accumulation_steps", "resume_from_checkpoint", "report_to", "gradient_checkpointing", "do_predict")
# Keys of the class that would undo what Forge promises; each with what to say.
REFUSED = {
    "auto_find_batch_size": "running out of memory ends with the changes to make instead",
    "push_to_hub": "publish the finished folder instead",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
    "ignore_data_skip": "a resumed run goes on at its own row",
    "parallelism_config": "not supported",
}


def training_arguments(recipe: Recipe) -> tuple[TrainingArguments, list[str]]:
    """The arguments of one rank and notices about keys that have no effect on this machine.

    Making them also starts the process group under torchrun, and DeepSpeed's, so they come before the model.

    Raises:
        RecipeError: a key that the class does not have, or a combination it refuses.
    """
    train, notices = recipe.train, list[str]()
    use_cpu = recipe.model.device == "cpu" or not torch.cuda.is_available()
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    names = {field.name for field in dataclasses.fields(train)} & known - set(OURS)
    values: dict[str, Any] = {name: getattr(train, name) for name in sorted(names)}
    for key, value in recipe.hf.items():
        if key in REFUSED and value:
            raise RecipeError(f"{key}: not available in Forge: {REFUSED[key]}")
        if key not in known:
            raise RecipeError(f"{key}: transformers.TrainingArguments has no such key.{nearest(key, known)}")
        values[key] = value
    values.update(_precision(recipe, use_cpu, notices))
    values.update(
        gradient_accumulation_steps=1,  # the loader's item is a whole optimizer step
        deepspeed=deepspeed_config(train.deepspeed),
        report_to=[],  # trackers come as guarded callbacks, see train/trackers.py
        disable_tqdm=True,
        logging_nan_inf_filter=False,  # a NaN is an alarm, not something to average away
        remove_unused_columns=False,
        use_cpu=use_cpu,
    )
    if train.gradient_checkpointing:
        name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
        options = values.pop("gradient_checkpointing_kwargs", None) or values.get(f"{name}_kwargs") or {}
        # The re-entrant form finds no gradient behind a frozen base.
        values.update({name: True, f"{name}_kwargs": {"use_reentrant": False, **options}})
    # Every trainable weight takes part in every pass, so DDP need not look for those that do not.
    values.setdefault("ddp_find_unused_parameters", False)
    if use_cpu:
        values["dataloader_pin_memory"] = False
        if "RANK" in os.environ:
            values["ddp_backend"] = "gloo"
    if train.metric_for_best_model is None and train.early_stopping_steps:
        values["metric_for_best_model"] = "loss"
    if values["greater_is_better"] is None and values["metric_for_best_model"] is not None:
        values["greater_is_better"] = not values["metric_for_best_model"].endswith(("loss", "perplexity"))
    if use_cpu and train.deepspeed and "RANK" in os.environ:
        # On a CPU transformers sets up the process group without DeepSpeed, which then cuts no weights for ZeRO-3.
        deepspeed = require("deepspeed", "deepspeed", "the key deepspeed")
        deepspeed.init_distributed(dist_backend="gloo", timeout=timedelta(seconds=train.ddp_timeout), verbose=False)
    try:
        args = TrainingArguments(**{key: value for key, value in values.items() if value is not None})
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training arguments: {error}") from None
    if args.n_gpu > 1:
        args._n_gpu = 1  # never DataParallel: several cards are several ranks, see train/launch.py
    return args, notices


def _precision(recipe: Recipe, use_cpu: bool, notices: list[str]) -> dict[str, bool]:
    """Autocast: off on a CPU and for pure_bf16; else as asked, by default bf16 where the card has it, else fp16."""
    bf16, fp16 = recipe.train.bf16, recipe.train.fp16
    if use_cpu or recipe.finetune.pure_bf16:
        why = "this run computes on the CPU, in fp32" if use_cpu else "pure_bf16 needs no autocast"
        notices += [f"{key}: true has no effect: {why}" for key, on in (("bf16", bf16), ("fp16", fp16)) if on]
        return {"bf16": False, "fp16": False}
    if bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError("bf16: this card has no bf16; use fp16: true")
    dtype = mixed_precision(recipe, torch.device("cuda"))
    return {"bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}


def deepspeed_config(given: str | dict | None) -> dict | None:
    """DeepSpeed's settings with the batch sizes left to the recipe, whose step the trainer accumulates itself."""
    if given is None:
        return None
    config = dict(given) if isinstance(given, dict) else _read_json(Path(given))
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        config[key] = "auto"
    return config


def _read_json(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"deepspeed: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"deepspeed: {path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"deepspeed: {path} must hold a JSON object")
    return config
