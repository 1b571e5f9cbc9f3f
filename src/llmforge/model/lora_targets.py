"""Names of the layers LoRA adapts: `all`, `qkv`, or what the recipe lists, looked up in the model at hand."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from llmforge.errors import RecipeError, nearest

# How architectures call the projections of queries, keys and values; the fused ones hold all three in one matrix.
QKV = {
    "q_proj", "k_proj", "v_proj",  # Llama, Qwen, Mistral, Gemma, Phi, OPT, GPT-J
    "query_key_value",  # Bloom, GPT-NeoX, Falcon, ChatGLM
    "qkv_proj",  # Phi-3
    "c_attn",  # GPT-2, Qwen 1
    "W_pack",  # Baichuan with its own code
    "Wqkv", "in_proj_qkv", "wqkv",  # MPT, Qwen3-Next, InternLM2
    "query", "key", "value",
}  # fmt: skip
# Baichuan is loaded as Llama here, its fused matrix split; recipes written for the original say W_pack.
SPLIT_NAMES = {"W_pack": ("q_proj", "k_proj", "v_proj")}


def linear_layers(model: Any) -> list[str]:
    """Full names of the linear layers inside the model, the output head left out; quantised ones count."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is not head and _is_linear(module)]


def lora_targets(model: Any, wanted: list[str]) -> list[str]:
    """Last names of the layers to adapt, in the model's order.

    `wanted` holds last names ("q_proj"), ends of full names ("self_attn.q_proj", kept as they are), `all` or `qkv`.

    Raises:
        RecipeError: a name that fits no linear layer or embedding; the message holds the nearest.
    """
    layers = linear_layers(model)
    embeddings = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    targets: dict[str, None] = {}
    for name in wanted:
        if name == "all":
            found = known
        elif name == "qkv":
            found = [layer for layer in known if layer in QKV]
            if not found:
                raise RecipeError(
                    f"lora_target: qkv is not known for this model; its linear layers are {', '.join(known)}"
                )
        elif name in SPLIT_NAMES and name not in known:
            found = [part for part in SPLIT_NAMES[name] if part in known]
        else:
            found = [name] if any(_ends(layer, name) for layer in (*layers, *embeddings, *_head(model))) else []
        if not found:
            raise RecipeError(
                f"lora_target: {name!r} is no linear layer of this model.{nearest(name, known)} "
                f"It has {', '.join(known)}; all and qkv stand for several"
            )
        targets.update(dict.fromkeys(found))
    return list(targets)


def check_modules(model: nn.Module, key: str, wanted: list[str]) -> None:
    """See that every name of `wanted` is a module of the model.

    Raises:
        RecipeError: naming `key`, the name and the nearest module.
    """
    names = [name for name, _ in model.named_modules() if name]
    last = dict.fromkeys(name.rpartition(".")[2] for name in names)
    for name in wanted:
        if not any(_ends(module, name) for module in names):
            outside = {n.rpartition(".")[2]: None for n in names if not any(part.isdigit() for part in n.split("."))}
            raise RecipeError(
                f"{key}: {name!r} is no module of this model.{nearest(name, last)} It has {', '.join(outside)}"
            )


def _is_linear(module: Any) -> bool:
    # Quantised layers of GPTQ and AWQ are no nn.Linear, but carry its two sizes.
    packed = any(hasattr(module, name) for name in ("qweight", "qzeros")) and hasattr(module, "in_features")
    return isinstance(module, (nn.Linear, Conv1D)) or packed


def _head(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if head is not None and module is head]


def _ends(full: str, name: str) -> bool:
    return full == name or full.endswith(f".{name}")
