"""What an adapter folder must hold to fit a base. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmforge.errors import RecipeError
from llmforge.model.weights import TensorInfo, check_weights, fingerprint, read_header, weight_files
from llmforge.runs import read_manifest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight -> model.layers.0.self_attn.q_proj, lora_A
LORA_KEY = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?$")
# Which side of the base's matrix (out, in) the long side of each LoRA matrix must equal: (of LoRA, of base).
SIDES = {"lora_A": (1, 1), "lora_B": (0, 0), "lora_embedding_A": (1, 0), "lora_embedding_B": (0, 1)}


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The adapter's PEFT settings.

    Raises:
        RecipeError: no adapter_config.json, or it is damaged.
    """
    file = path / CONFIG
    if not file.is_file():
        raise RecipeError(f"adapter_name_or_path: {path} has no {CONFIG}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ValueError("no peft_type")
    except ValueError as error:
        raise RecipeError(f"{file}: damaged or no PEFT settings ({error})") from None
    return config


def check_adapter(path: Path, folder: Path) -> Path:
    """`path`, after a look whether it is a whole adapter made for the base in `folder`.

    Compared are the base's fingerprint in the run's manifest, when there is one, and the shapes of LoRA matrices.

    Raises:
        RecipeError: files missing or damaged, or another base.
    """
    path = Path(path)
    config = read_adapter_config(path)
    if not (path / WEIGHTS).is_file() and (path / "adapter_model.bin").is_file():
        return path  # a pickle cannot be looked into without torch; peft reads it with weights_only
    tensors = read_header(path / WEIGHTS)
    made_for = config.get("base_model_name_or_path") or "another model"
    base = (read_manifest(path) or {}).get("base_fingerprint")
    if base and (here := fingerprint(folder)) and base != here:
        raise RecipeError(f"adapter_name_or_path: {path} was trained on another base ({made_for}) than {folder}")
    if weight_files(folder):
        _compare_shapes(path, tensors, check_weights(folder), folder, made_for)
    return path


def _compare_shapes(
    path: Path, adapter: dict[str, TensorInfo], base: dict[str, TensorInfo], folder: Path, made_for: str
) -> None:
    # A checkpoint may leave out or add the outermost module's name ("transformer.h.0" and "h.0"), so compare tails.
    by_tail = {name.removesuffix(".weight").partition(".")[2]: info.shape for name, info in base.items()}
    by_name = {name.removesuffix(".weight"): info.shape for name, info in base.items()}
    compared = unknown = 0
    for key, info in adapter.items():
        if not (match := LORA_KEY.match(key)):
            continue
        module, side = match[1], SIDES[match[2]]
        shape = by_name.get(module) or by_name.get(module.partition(".")[2]) or by_tail.get(module.partition(".")[2])
        if shape is None or len(shape) != 2 or len(info.shape) != 2:
            unknown += 1
            continue
        compared += 1
        # GPT-2's Conv1D keeps its matrix the other way round, so either side will do; packed weights say nothing.
        if info.shape[side[0]] not in (shape[side[1]], shape[1 - side[1]]) and _is_plain(base, module):
            raise RecipeError(
                f"adapter_name_or_path: {path} was made for another base ({made_for}): {module} is "
                f"{shape[0]} x {shape[1]} in {folder}, the adapter has {info.shape[side[0]]}"
            )
    if unknown and not compared and any(info.dtype in ("F32", "F16", "BF16") for info in base.values()):
        raise RecipeError(
            f"adapter_name_or_path: {path} was made for another base ({made_for}): none of its layers is in {folder}"
        )


def _is_plain(base: dict[str, TensorInfo], module: str) -> bool:
    """Whether the module's weight is kept in a plain float format, not packed by a quantiser."""
    tail = module.partition(".")[2]
    return any(
        info.dtype in ("F32", "F16", "BF16", "F64")
        for name, info in base.items()
        if name in (f"{module}.weight", f"{tail}.weight") or name.endswith(f".{tail}.weight")
    )
