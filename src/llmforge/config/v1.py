"""Recipes of LLaMA-Factory's second engine ("v1": `model:` instead of `model_name_or_path:`) in the usual keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmforge.config.given import Given, Problem
from llmforge.config.schema import Origin
from llmforge.config.yaml_text import shown

PLAIN = {
    "model": "model_name_or_path",
    "train_dataset": "dataset",
    "micro_batch_size": "per_device_train_batch_size",
    "sample_backend": "infer_backend",
}
FLASH = {"flash_attention_2": "fa2", "flash_attention_3": "fa3"}
LORA = {"r": "lora_rank", "target_modules": "lora_target"}
NO_EFFECT = ("model_class", "kernel_config", "init_config", "cp_mode")
BATCHING = {"normal": None, "dynamic_batching": None, "padding_free": True, "dynamic_padding_free": True}


def is_v1(items: list[Given]) -> bool:
    """Whether one file's keys are a v1 recipe."""
    named = {item.key: item.value for item in items}
    return isinstance(named.get("model"), str) and "model_name_or_path" not in named


def from_v1(items: list[Given]) -> tuple[list[Given], list[str], list[Problem]]:
    """The keys in their usual spelling, notes, and what has no counterpart here."""
    result = _Usual([], [f"{items[0].origin.file}: read as a recipe of LLaMA-Factory's v1"], [])
    if not any(item.key == "peft_config" for item in items):
        result.given.append(
            Given("finetuning_type", "full", items[0].origin)
        )  # v1 trains all weights unless told otherwise
    for item in items:
        if item.key in PLAIN:
            result.set(PLAIN[item.key], item.value, item)
        elif item.key in GROUPS and isinstance(item.value, dict):
            GROUPS[item.key](item, dict(item.value), result)
        elif item.key in GROUPS and item.value is None:
            continue
        elif item.key == "flash_attn":
            result.set("flash_attn", FLASH.get(item.value, item.value), item)
        elif item.key == "batching_strategy" and item.value in BATCHING:
            if BATCHING[item.value]:
                result.set("packing", True, item)
        elif item.key == "cp_size" and item.value in (None, 1):
            continue
        elif item.key in ("cp_size", "batching_strategy", "global_batch_size"):
            result.refuse(item, item.key, item.value)
        elif item.key not in NO_EFFECT:
            result.given.append(item)
    for item in result.given:
        if item.key == "dataset" and str(item.value).endswith((".yaml", ".yml")):
            message = (
                "train_dataset: a v1 list of data sets is not read; write entries of dataset_info.json or data files"
            )
            result.problems.append(Problem(item.origin, message))
    return result.given, result.notes, result.problems


class _Usual:
    """What a v1 recipe becomes."""

    def __init__(self, given: list[Given], notes: list[str], problems: list[Problem]):
        self.given, self.notes, self.problems = given, notes, problems

    def set(self, key: str, value: Any, item: Given) -> None:
        origin = Origin(f"{item.origin.text}, as {item.key}", item.origin.file, item.origin.line)
        self.given.append(Given(key, value, origin, item.text if value is item.value else None))

    def refuse(self, item: Given, key: str, value: Any) -> None:
        self.problems.append(Problem(item.origin, f"{key}: {shown(value)} of a v1 recipe has no counterpart here"))


def _peft(item: Given, parts: dict[str, Any], result: _Usual) -> None:
    result.set("finetuning_type", parts.pop("name", "lora"), item)
    for key, value in parts.items():
        if value is not None:
            result.set(LORA.get(key, key), value, item)


def _dist(item: Given, parts: dict[str, Any], result: _Usual) -> None:
    if parts.get("name") == "deepspeed":
        result.set("deepspeed", parts.get("config_file"), item)
    elif parts.get("name") == "fsdp2" and not parts.get("dcp_path"):
        result.notes.append(
            f"{item.origin.text}: dist_config: fsdp2 is not used; several devices train with DDP or deepspeed"
        )
    else:
        result.refuse(item, "dist_config", parts.get("name"))


def _quant(item: Given, parts: dict[str, Any], result: _Usual) -> None:
    if parts.get("name") not in ("bnb", "auto"):
        result.refuse(item, "quant_config", parts.get("name"))
    else:
        result.set("quantization_bit", parts.get("quantization_bit"), item)


def _optim(item: Given, parts: dict[str, Any], result: _Usual) -> None:
    if parts.get("name") not in ("adamw", "adamw_torch"):
        result.refuse(item, "optim_config", parts.get("name"))


GROUPS: dict[str, Callable[[Given, dict[str, Any], _Usual], None]] = {
    "peft_config": _peft,
    "dist_config": _dist,
    "quant_config": _quant,
    "optim_config": _optim,
}
