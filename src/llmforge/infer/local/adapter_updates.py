"""What an adapter adds to each layer of a base, read from its folder.

Plain LoRA and DoRA become two small matrices per layer. Every other PEFT method that works token by token (IA3, LoHa,
OFT, retrained embeddings, biases and norms, ...) runs through PEFT's own layer, for its rows only. What reaches
beyond the single token (prompt and prefix tuning, mixtures that run the model twice) is refused by name.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmforge.errors import RecipeError
from llmforge.infer.local.live import base_of
from llmforge.infer.local.lora_batch import AdapterBatch, Update
from llmforge.infer.local.low_rank import Directed, LowRank
from llmforge.infer.local.packed import Packing
from llmforge.model.adapter_files import WEIGHTS, read_adapter_config

KEY = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
# Settings of PEFT's LoRA under which a layer is more than two matrices and a factor.
MORE = (
    "alora_invocation_tokens",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "arrow_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
LINEARS = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")  # the last two are bitsandbytes'
TOKEN_WISE = ("Linear", "Conv1D", "Embedding", "Norm")  # how the names of such layers' classes end or begin
TOLERANCE = 1e-3  # of the largest logit; a part left out shows in the first digits
INNER = "served"  # the adapter's name inside the copy that PEFT works on


class OwnLayer:
    """PEFT's layer in place of the base's."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __call__(self, x: Tensor, y: Tensor) -> None:
        y.copy_(self.layer(x))


class NotShareable(RecipeError):
    """The adapter fits the base, but others cannot stand beside it; it can be served alone."""


def read_updates(model: Any, folder: Path, packing: Packing | None = None) -> dict[str, Update]:
    """The adapter's update for each layer it changes, by the layer's name in the transformers model.

    What the model computes stays as it is, so this may run beside a forward pass.

    Args:
        packing: of the model's layers, whose plain weights some adapters need.

    Raises:
        NotShareable: a method that cannot share a pass with others.
        RecipeError: an adapter that does not fit, or that the local engine cannot run at all.
    """
    settings = read_adapter_config(folder)
    check_shareable(settings, folder)
    base = base_of(model)
    if updates := _read_lora(base, folder, settings, packing):
        return updates
    if packing is None:
        return _read_own_layers(base, folder)
    with packing.plain():
        updates = _read_own_layers(base, folder)
        for name in updates:  # PEFT's layer computes with the base's weight
            packing.keep_plain(name)
    return updates


def check_shareable(settings: dict[str, Any], folder: Path) -> None:
    """Refuse adapters that change more than what a layer does to one token.

    Raises:
        NotShareable: names the method.
        RecipeError: the same, of methods that put tokens of their own before the prompt.
    """
    kind = str(settings.get("peft_type"))
    if kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"):
        raise RecipeError(f"adapters: {folder} is of type {kind}, whose own tokens the local engine cannot run")
    if kind in ("ADAPTION_PROMPT", "XLORA", "POLY") or settings.get("alora_invocation_tokens"):
        method = "activated LoRA" if settings.get("alora_invocation_tokens") else kind
        raise NotShareable(f"adapters: {folder} is of type {method}, which cannot share a pass with other adapters")
    if str(settings.get("init_lora_weights", "")).startswith(("pissa", "olora", "loftq", "corda", "lora_ga")):
        raise NotShareable(
            f"adapters: {folder} changes the base's weights ({settings['init_lora_weights']}), which others share; "
            "serve it alone, or train with pissa_convert"
        )


def _read_lora(base: Any, folder: Path, settings: dict[str, Any], packing: Packing | None) -> dict[str, Update]:
    """Plain LoRA and DoRA, or nothing when the adapter is more than that."""
    file = folder / WEIGHTS
    if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none" or not file.is_file():
        return {}
    if any(settings.get(name) for name in MORE):
        return {}
    parts = _lora_tensors(base, file)
    updates: dict[str, Update] = {}
    for name, tensors in parts.items():
        layer: Any = _submodule(base, name)
        if type(layer).__name__ not in LINEARS or not {"lora_A", "lora_B"} <= tensors.keys():
            return {}
        a, b = tensors["lora_A"], tensors["lora_B"]
        if type(layer) is not nn.Linear and "lora_magnitude_vector" in tensors:
            return {}
        if type(layer).__name__ == "Conv1D":
            sizes = layer.weight.shape[::-1]
        else:
            sizes = (layer.out_features, layer.in_features)
        if (b.shape[0], a.shape[1]) != sizes:
            return {}
        scale = _scale(settings, name, a.shape[0])
        if (magnitude := tensors.get("lora_magnitude_vector")) is not None:
            weight = layer.weight if packing is None else packing.weight_of(name, layer)
            updates[name] = Directed(a, b, scale, magnitude, weight, layer.bias)
        else:
            updates[name] = LowRank(a, b, scale)
    return updates


def _lora_tensors(base: Any, file: Path) -> dict[str, dict[str, Tensor]]:
    """The file's matrices by layer and kind, in the base's precision; nothing when it holds something else."""
    from safetensors.torch import load_file

    like = base.get_input_embeddings().weight
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(file).items():
        match = KEY.match(key)
        if match is None:
            return {}
        parts.setdefault(match[1], {})[match[2]] = tensor.to(like.device, like.dtype)
    return parts


def _scale(settings: dict[str, Any], name: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r); single layers may have an alpha of their own."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), settings.get("lora_alpha") or 8)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _submodule(base: nn.Module, name: str) -> nn.Module | None:
    try:
        return base.get_submodule(name)
    except AttributeError:
        return None


def _read_own_layers(base: nn.Module, folder: Path) -> dict[str, Update]:
    """PEFT's layers over a copy of the model that shares all its matrices, and a look whether they are all there is."""
    from llmforge.model.adapters import attach_adapter

    whole = attach_adapter(_view(base), folder, INNER).eval().requires_grad_(False)
    updates: dict[str, Update] = {}
    for name, layer in _changed(base, base_of(whole)):
        kind = type(base.get_submodule(name)).__name__
        if not kind.startswith(TOKEN_WISE) and not kind.endswith(TOKEN_WISE):
            raise NotShareable(
                f"adapters: {folder} changes {name} ({kind}), which is no layer of single tokens; serve it alone, or "
                "merge it by export"
            )
        updates[name] = OwnLayer(layer)
    _compare(_view(base), whole, updates, folder)
    return updates


def _view(base: Any) -> Any:
    """A copy of the model that shares its matrices, with the library's own forwards.

    Vectors are copied: an adapter with trained biases or norms writes them into the model it is put on.
    """
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers()) if tensor.ndim > 1}
    view = copy.deepcopy(base, dict(shared))
    for module in view.modules():
        module.__dict__.pop("forward", None)  # somebody's own form of one layer, bound to the original
    view.set_attn_implementation("eager")
    return view


@torch.no_grad()
def _compare(view: Any, whole: Any, updates: dict[str, Update], folder: Path) -> None:
    """Whether the updates give what PEFT's model gives, which methods that do more than change layers do not.

    Raises:
        RecipeError: they do not.
    """
    head = view.get_output_embeddings()
    ids = torch.arange(1, 9, device=head.weight.device)[None]
    batch = AdapterBatch(view)
    batch.add(INNER, updates)
    with batch.using([(INNER, 1)]):
        ours = view(input_ids=ids, use_cache=False).logits.float()
    theirs = whole(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * float(theirs.abs().max())):
        raise NotShareable(
            f"adapters: {folder} does more than change single layers, so it cannot share a pass with other adapters; "
            "serve it alone, or merge it by export"
        )


def _changed(before: nn.Module, after: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules of `after` that another class or other numbers tell from those of `before`."""
    pairs = zip(before.parameters(recurse=False), after.parameters(recurse=False), strict=False)
    if type(before) is not type(after) or any(p is not q and not torch.equal(p, q) for p, q in pairs):
        yield name, after
        return
    for child, module in before.named_children():
        yield from _changed(module, after.get_submodule(child), f"{name}.{child}" if name else child)
