"""Which weights learn: all, some layers, LoRA, or any other PEFT method; and adapters attached for answering.

Each function of FINETUNING_TYPES takes the loaded base, the recipe's FinetuneConfig and the folders of given adapters,
and returns the model to train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from llmforge.config.schema import FinetuneConfig
from llmforge.errors import RecipeError, nearest
from llmforge.model.lora_targets import check_modules, lora_targets
from llmforge.model.pissa import changes_base, remember_initial_lora
from llmforge.model.sources import say

ADAPTER = "default"  # peft's name of the only adapter
INIT_SEED = 0  # the fast SVD of pissa is random; a fixed seed lets it be repeated from the base alone
UNMERGEABLE = ("XLORA", "POLY")  # these choose between adapters for every token


def train_all(model: Any, finetune: FinetuneConfig, adapters: list[str]) -> Any:
    """Every weight learns, adapters merged in first."""
    model = merge_adapters(model, adapters)
    return model.requires_grad_(True)


def train_some_layers(model: Any, finetune: FinetuneConfig, adapters: list[str]) -> Any:
    """Only `freeze_trainable_modules` of the last (or first) layers learn, and `freeze_extra_modules` outside them.

    Layers are counted as LLaMA-Factory does: n > 0 are the last n, n < 0 the first -n.

    Raises:
        RecipeError: a module that is not there.
    """
    model = merge_adapters(model, adapters).requires_grad_(False)
    layers = decoder_layers(model)
    count = finetune.freeze_trainable_layers
    chosen = list(layers)[-count:] if count > 0 else list(layers)[:-count]
    for name in finetune.freeze_trainable_modules:
        if name != "all":
            check_modules(layers[0], "freeze_trainable_modules", [name])
        for layer in chosen:
            _let_learn(layer, name)
    check_modules(model, "freeze_extra_modules", finetune.freeze_extra_modules)
    for name in finetune.freeze_extra_modules:
        _let_learn(model, name)
    if not finetune.pure_bf16:
        _learn_in_fp32(model)
    return model


def add_lora(model: Any, finetune: FinetuneConfig, adapters: list[str]) -> Any:
    """A LoRA adapter learns: the last of the given ones, or a new one on top of all of them.

    LoRA's own weights are fp32 whatever the base is in. A name in `additional_target` stands for every module whose
    name ends in it, as peft has it: `norm` is all norms.

    Raises:
        RecipeError: a target that is no layer of the model, or settings that peft refuses.
    """
    if adapters and not finetune.create_new_adapter:
        return continue_adapter(model, adapters)
    model = merge_adapters(model, adapters)
    check_modules(model, "additional_target", finetune.additional_target)
    targets = lora_targets(model, finetune.lora_target)
    if both := sorted(set(targets) & set(finetune.additional_target)):
        raise RecipeError(f"additional_target: {', '.join(both)} is in lora_target too; say it once")
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    embeddings = {"embed_tokens", "wte", "word_embeddings", "lm_head", "embed_in", "embed_out"}
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": finetune.lora_rank,
        "lora_alpha": finetune.lora_alpha or 2 * finetune.lora_rank,
        "lora_dropout": finetune.lora_dropout,
        "target_modules": targets,
        "modules_to_save": finetune.additional_target or None,
        "use_rslora": finetune.use_rslora,
        "use_dora": finetune.use_dora,
        "init_lora_weights": lora_init(finetune),
        # A trained copy of a tied embedding must stay the output head too.
        "ensure_weight_tying": bool(tied and embeddings & {*targets, *finetune.additional_target}),
    }
    if settings["init_lora_weights"] == "eva":  # the weights come from the data: init_eva in model/eva.py
        settings["eva_config"] = peft.EvaConfig(rho=1.0)
    return remember_initial_lora(_wrap(model, peft.LoraConfig, settings, "lora_init"))


def add_peft(model: Any, finetune: FinetuneConfig, adapters: list[str]) -> Any:
    """Any other PEFT method by its name, `peft_kwargs` being the fields of its config class.

    Raises:
        RecipeError: unknown method or field (nearest name given), or settings that peft refuses.
    """
    if adapters and not finetune.create_new_adapter:
        return continue_adapter(model, adapters)
    known = sorted(kind.name for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    name = (finetune.peft_type or "").upper()
    if name not in known:
        raise RecipeError(
            f"peft_type: {finetune.peft_type!r} is not known.{nearest(name, known)} Known: {', '.join(known)}"
        )
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[name]]
    fields = [field.name for field in dataclasses.fields(config_class) if field.init]
    for key in finetune.peft_kwargs:
        if key not in fields:
            raise RecipeError(f"peft_kwargs: {name} has no argument {key!r}.{nearest(key, fields)}")
    arguments = dict(finetune.peft_kwargs)
    if "target_modules" in fields and "target_modules" not in arguments:
        arguments["target_modules"] = lora_targets(model, finetune.lora_target)
    if "modules_to_save" in fields and finetune.additional_target:
        check_modules(model, "additional_target", finetune.additional_target)
        arguments.setdefault("modules_to_save", finetune.additional_target)
    arguments["task_type"] = "CAUSAL_LM"
    return _wrap(merge_adapters(model, adapters), config_class, arguments, "peft_kwargs")


def lora_init(finetune: FinetuneConfig) -> bool | str:
    """peft's name of the initial weights; `pissa_init` and `pissa_iter` are LLaMA-Factory's spelling."""
    if not finetune.pissa_init:
        return finetune.lora_init
    return "pissa" if finetune.pissa_iter == -1 else f"pissa_niter_{finetune.pissa_iter}"


def continue_adapter(model: Any, adapters: list[str]) -> Any:
    """The last adapter learns on, with its own rank and targets; the ones before it are merged into the base."""
    model = merge_adapters(model, adapters[:-1])
    config = peft.PeftConfig.from_pretrained(adapters[-1])
    settings = (
        f"rank {config.r}, alpha {config.lora_alpha:g}"
        if isinstance(config, peft.LoraConfig)
        else config.peft_type.value
    )
    say(f"continuing the adapter {adapters[-1]} ({settings}); its settings hold, not the recipe's")
    model = _read(model, adapters[-1], ADAPTER, learns=True)
    _in_order(model.active_peft_config)
    _learn_in_fp32(model)
    return model


def attach_adapters(model: Any, adapters: list[Path]) -> Any:
    """All adapters but the last merged into the base, the last attached."""
    if not adapters:
        return model
    return _read(merge_adapters(model, [str(path) for path in adapters[:-1]]), str(adapters[-1]), ADAPTER)


def attach_adapter(model: Any, path: str | Path, name: str) -> Any:
    """The model with one more adapter, called `name`; which one is active does not change, but for the first.

    Raises:
        RecipeError: a name that is taken or holds a dot, or an adapter that does not fit.
    """
    if "." in name or not name:
        raise RecipeError(f"adapters: {name!r} cannot be an adapter's name inside the model; leave dots out")
    if isinstance(model, peft.PeftModel) and name in model.peft_config:
        raise RecipeError(f"adapters: the name {name!r} is taken")
    if changes_base(peft.PeftConfig.from_pretrained(str(path))):
        raise RecipeError(
            f"adapters: {path} takes a part out of the base (pissa, olora), which others share; train it with "
            "pissa_convert: true, or export it and serve it alone"
        )
    return _read(model, str(path), name)


def merge_adapters(model: Any, adapters: list[str]) -> Any:
    """The base with adapters merged into its weights, one after the other.

    Raises:
        RecipeError: a quantised base, or a method that changes more than weights.
    """
    if adapters and getattr(model, "hf_quantizer", None) is not None:
        raise RecipeError(
            "adapter_name_or_path: a quantised base takes one adapter only; merge the others by export first"
        )
    for path in adapters:
        refuse_unmergeable(path)
        model = _read(model, path, ADAPTER).merge_and_unload(safe_merge=True)
    return model


def refuse_unmergeable(path: str | Path) -> None:
    """Raises:
    RecipeError: the adapter does not change weights alone, so it cannot be merged.
    """
    kind = peft.PeftConfig.from_pretrained(str(path)).peft_type
    tuner = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    if not isinstance(tuner, type) or not issubclass(tuner, BaseTuner) or kind.value in UNMERGEABLE:
        raise RecipeError(
            f"adapter_name_or_path: {path} is of type {kind.value}, which adds tokens or layers beside the weights and "
            "cannot be merged into them; serve it as an adapter"
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; tied ones count once, 4-bit ones by what they stand for, ZeRO-3 shards whole."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        number = getattr(parameter, "ds_numel", None) or parameter.numel()
        if parameter.__class__.__name__ == "Params4bit":
            number *= 2 * parameter.element_size()
        counts[parameter.requires_grad] += number
    return counts[True], counts[True] + counts[False]


def loraplus_groups(model: nn.Module, finetune: FinetuneConfig, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of LoRA+ (Hayou et al. 2024): B learns `loraplus_lr_ratio` times as fast as A.

    LoRA on embeddings has `loraplus_lr_embedding`; biases and norms have no weight decay.
    """
    ratio = finetune.loraplus_lr_ratio or 1.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = lr
        if "lora_embedding_" in name:
            rate = finetune.loraplus_lr_embedding
        elif "lora_B" in name:
            rate = lr * ratio
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of the model's transformer layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    count = model.config.get_text_config().num_hidden_layers
    return next(layers for layers in lists if len(layers) == count)


def _let_learn(module: nn.Module, name: str) -> None:
    for full, part in module.named_modules():
        if name == "all" or full == name or full.endswith(f".{name}"):
            part.requires_grad_(True)


def _learn_in_fp32(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _in_order(config: Any) -> None:
    """Sets of names as sorted lists: adapter_config.json is then the same in every process."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, set):
            setattr(config, item.name, sorted(value))


def _wrap(model: Any, config_class: Any, arguments: dict[str, Any], key: str) -> Any:
    try:
        config = config_class(**arguments)
        with _repeatable(config):
            model = peft.get_peft_model(model, config)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{key}: peft refuses these settings: {error}") from None
    _in_order(config)
    _learn_in_fp32(model)
    return model


def _read(model: Any, path: str, name: str, learns: bool = False) -> Any:
    config = peft.PeftConfig.from_pretrained(path)
    try:
        with _repeatable(config):
            if isinstance(model, peft.PeftModel):
                model.load_adapter(path, name, is_trainable=learns)
                return model
            return peft.PeftModel.from_pretrained(model, path, adapter_name=name, is_trainable=learns)
    except (RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(f"adapter_name_or_path: {path} does not fit this base: {' '.join(first[:2])}") from error


@contextlib.contextmanager
def _repeatable(config: Any) -> Iterator[None]:
    """A fixed seed for inits that change the base; and no warnings about names that peft still uses of transformers."""
    with torch.random.fork_rng(enabled=changes_base(config)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if changes_base(config):
            torch.manual_seed(INIT_SEED)
        yield
