"""Taking the lean forms of a model's layers (model/linear.py) wherever they are exact.

A layer is taken when its class is the plain one and on a random input the lean form gives what the layer gives. At
each call it is taken only while its weights are whole, floating and of one type; 4-bit and sharded weights, DoRA,
merged adapters, hooks, autocast run the layer's own forward. A switched-off adapter leaves the product with the base
alone, by the same kernel, so that a reference differs from a policy that has learned nothing by no bit. Only instances
are touched, never a class or a module of a library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from llmforge.model.linear import Linear, gated_mlp, lora_linear, rms_norm
from llmforge.model.rotary import with_lean_rotary

TOLERANCE = 1e-4  # relative, fp32; another formula, such as another activation, is off by 1e-2 and more


@dataclass
class Taken:
    """How many layers got a lean form, for the log line."""

    linears: int = 0
    mlps: int = 0
    norms: int = 0
    rotaries: int = 0

    def __str__(self) -> str:
        return (
            f"{self.linears} LoRA linears, {self.mlps} gated MLPs, {self.norms} norms, "
            f"rotary positions of {self.rotaries} layers"
        )


def take_lean_layers(model: nn.Module) -> Taken:
    """Give every layer that allows it its lean forward."""
    taken = Taken()
    agrees = _Agreement()
    turned = cache(with_lean_rotary)
    module: Any  # layers are known by their attributes
    for module in model.modules():
        if _is_lora(module):
            module.forward = partial(_linear_forward, module)
            taken.linears += 1
        elif _is_gated_mlp(module) and agrees(module, _mlp_forward, module.gate_proj.in_features):
            module.forward = partial(_mlp_forward, module)
            taken.mlps += 1
        elif _is_norm(module):
            for offset in (0.0, 1.0):  # Gemma multiplies by 1 + weight
                lean = partial(_norm_forward, offset=offset)
                if agrees(module, lean, len(module.weight), offset):
                    module.forward = partial(lean, module)
                    taken.norms += 1
                    break
        elif type(module).__name__.endswith("Attention") and (turn := turned(type(module).forward)):
            module.forward = partial(turn, module)
            taken.rotaries += 1
    return taken


def _is_lora(module: nn.Module) -> bool:
    return type(module).__module__ == "peft.tuners.lora.layer" and type(module).__name__ == "Linear"


def _is_gated_mlp(module: Any) -> bool:
    names = {name for name, _ in module.named_children()}
    return names == {"gate_proj", "up_proj", "down_proj", "act_fn"}


def _is_norm(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), nn.Parameter)


class _Agreement:
    """Asks `_agrees` once for all layers of one formula: a model has dozens."""

    def __init__(self) -> None:
        self._known: dict[tuple, bool] = {}

    def __call__(self, module: Any, lean: Callable[..., Tensor], width: int, *also: float) -> bool:
        if not all(map(_is_whole, module.parameters())):
            return False
        key = (type(module), type(getattr(module, "act_fn", None)), width, *also)
        if key not in self._known:
            self._known[key] = _agrees(module, lean, width)
        return self._known[key]


@torch.no_grad()
def _agrees(module: nn.Module, lean: Callable[..., Tensor], width: int) -> bool:
    """Whether the lean form gives what the layer gives, on numbers no special case hides behind."""
    weight = next(module.parameters())
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    expected, got = type(module).forward(module, x), lean(module, x)
    return bool((expected - got).abs().max() <= TOLERANCE * expected.abs().max()) and bool(expected.abs().max() > 0)


def _is_whole(weight: Tensor | None) -> bool:
    """Not quantised, not sharded by ZeRO-3 or FSDP, fp32 or fp64."""
    return weight is None or (
        type(weight) in (nn.Parameter, Tensor)
        and weight.dtype in (torch.float32, torch.float64)
        and not hasattr(weight, "ds_id")
        and weight.device.type != "meta"
    )


def _as_linear(module: Any) -> tuple[Linear, float] | None:
    """The layer's weights with its one active update and that update's dropout, or None when it is more than that."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return None
    if type(module) is nn.Linear:
        return (Linear(module.weight, module.bias, None, None, 1.0), 0.0) if _is_whole(module.weight) else None
    if not _is_lora(module) or type(module.base_layer) is not nn.Linear or module.merged:
        return None
    if module.disable_adapters:
        return _as_linear(module.base_layer)
    names = [name for name in module.active_adapters if name in module.lora_A]
    if len(names) != 1 or names[0] in module.lora_variant or module.lora_B[names[0]].bias is not None:
        return None
    name, base = names[0], module.base_layer
    weights = (base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight)
    if not all(map(_is_whole, weights)) or len({w.dtype for w in weights if w is not None}) != 1:
        return None
    dropout = module.lora_dropout[name]
    share = dropout.p if isinstance(dropout, nn.Dropout) and module.training else 0.0
    return Linear(*weights, module.scaling[name]), share


def _plain(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)


def _linear_forward(module: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    found = None if args or kwargs else _as_linear(module)
    if found is None or not _plain(x, found[0].weight):
        return type(module).forward(module, x, *args, **kwargs)
    linear, dropout = found
    return lora_linear(x, linear, dropout)


def _mlp_forward(module: Any, x: Tensor) -> Tensor:
    found = [_as_linear(layer) for layer in (module.gate_proj, module.up_proj, module.down_proj)]
    parts = [linear for linear, dropout in filter(None, found) if dropout == 0]
    if len(parts) < 3 or not _plain(x, parts[0].weight):
        return type(module).forward(module, x)
    return gated_mlp(x, *parts)


def _norm_forward(module: Any, x: Tensor, *, offset: float) -> Tensor:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None or not _is_whole(module.weight) or not _plain(x, module.weight):
        return type(module).forward(module, x)
    return rms_norm(x, module.weight + offset if offset else module.weight, eps)
