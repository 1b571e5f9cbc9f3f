"""LoRA inits that take their part out of the base (PiSSA, OLoRA), and the way back to a plain LoRA adapter.

PiSSA (Meng et al. 2024) starts from W = W_res + s B0 A0, the largest singular parts of W, and trains s B A on top of
W_res. Seen from W the change is s (B A - B0 A0), a plain LoRA of twice the rank: [B, -B0] [A; A0].
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from llmforge.config.schema import FinetuneConfig
from llmforge.errors import RecipeError


def changes_base(config: Any) -> bool:
    """Whether a LoRA config's init changes the base's weights; reading such an adapter repeats the init."""
    return str(getattr(config, "init_lora_weights", "")).startswith(("pissa", "olora"))


def remember_initial_lora(model: Any) -> Any:
    """Keep a copy of A0 and B0 at the model, on the CPU, for `save_adapter`; only where the init needs it."""
    if changes_base(model.active_peft_config):
        model.initial_lora = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
    return model


def save_adapter(model: Any, folder: Path, finetune: FinetuneConfig) -> None:
    """Write the active adapter in PEFT's layout; with `pissa_convert` as plain LoRA for the unchanged base.

    Raises:
        RecipeError: a PiSSA adapter that was continued; its start lies in another run.
    """
    model.save_pretrained(folder, selected_adapters=[model.active_adapter])
    make_plain(model, folder, finetune)


def make_plain(model: Any, folder: Path, finetune: FinetuneConfig) -> None:
    """Turn the PiSSA adapter of `model` just saved in `folder` into plain LoRA, when the recipe says `pissa_convert`.

    Raises:
        RecipeError: see `save_adapter`.
    """
    if not (finetune.pissa_convert and hasattr(model, "active_peft_config") and changes_base(model.active_peft_config)):
        return
    if not hasattr(model, "initial_lora"):
        raise RecipeError("pissa_convert: a continued PiSSA adapter cannot be converted; export it instead")
    _convert(folder, model.initial_lora, model.active_adapter)


def _convert(folder: Path, initial: dict[str, torch.Tensor], adapter: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    for name, start in initial.items():
        key = name.replace(f".{adapter}.", ".")
        joined = (weights[key], start) if ".lora_A." in key else (weights[key], -start)
        weights[key] = torch.cat(joined, dim=0 if ".lora_A." in key else 1).contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # alpha / r, or alpha / sqrt(r), stays what it was.
    config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    config["r"] *= 2
    config["init_lora_weights"] = True
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
