"""A recipe's model, ready to train or to answer: files, precision, device, vocabulary, adapters."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from llmforge.config.names import FINETUNING_TYPES
from llmforge.config.schema import ModelConfig, Recipe
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError, require
from llmforge.model.adapter_files import check_adapter
from llmforge.model.adapters import attach_adapters
from llmforge.model.device import base_dtype, pick_device
from llmforge.model.hub import adapter_folder
from llmforge.model.remote_code import allow_remote_code
from llmforge.model.sources import resolve_model, say
from llmforge.model.text import load_text
from llmforge.model.vocabulary import grow_embeddings
from llmforge.model.weights import check_weights

ATTENTION = {"auto": None, "disabled": "eager", "eager": "eager", "sdpa": "sdpa"}
FLASH = {
    "fa2": ("flash_attention_2", is_flash_attn_2_available, "flash-attn"),
    "fa3": ("flash_attention_3", is_flash_attn_3_available, "flash-attn-3"),
}


@dataclass
class LoadedModel:
    """A model with everything it needs to read and write text. `folder` is the base's; the tokenizer has its own."""

    model: Any  # transformers.PreTrainedModel, or peft.PeftModel around one
    tokenizer: Tokenizer
    template: Template
    folder: Path


def load_model(recipe: Recipe, *, for_training: bool, text: tuple[Tokenizer, Template] | None = None) -> LoadedModel:
    """Load the recipe's base, and what is trained or attached on top of it.

    For training, FINETUNING_TYPES decides which weights learn. Otherwise all adapters but the last are merged, the last
    is attached unmerged, and the model is in eval mode. `text` is what `load_text` gave, where it was read already.

    Raises:
        RecipeError: files missing or damaged, a library or card absent, an adapter of another base.
    """
    device = pick_device(recipe.model)
    dtype = base_dtype(recipe, device, for_training=for_training)
    if device.type == "cuda" and dtype == torch.float16:
        say(
            f"{torch.cuda.get_device_name(device)} has no bf16: computing in fp16"
            + (", loss scaled" if for_training else "")
        )
    folder = resolve_model(recipe.model)
    adapters = [
        check_adapter(adapter_folder(recipe.model, name, say), folder) for name in recipe.model.adapter_name_or_path
    ]
    tokenizer, template = text or load_text(recipe, folder)
    model = load_base(recipe, folder, dtype, device)
    grown = grow_embeddings(model, len(tokenizer)) if recipe.model.resize_vocab else 0
    if not for_training:
        return LoadedModel(attach_adapters(model, adapters).eval(), tokenizer, template, folder)
    finetune = recipe.finetune
    if grown and finetune.finetuning_type == "lora" and not finetune.additional_target:
        finetune = replace(finetune, additional_target=embedding_names(model))
        say(f"{grown} new tokens: {' and '.join(finetune.additional_target)} learn too and are saved with the adapter")
    model = FINETUNING_TYPES.get(finetune.finetuning_type)(model, finetune, [str(path) for path in adapters])
    return LoadedModel(model.train(), tokenizer, template, folder)


def load_base(recipe: Recipe, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The causal language model in `folder`; weights are mapped from disk and copied only where the precision differs.

    Raises:
        RecipeError: see `load_model`.
    """
    config = recipe.model
    check_weights(folder)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    trust = allow_remote_code(folder, config, say)
    try:
        model_config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except StrictDataclassError as error:  # a value of the wrong type; the last line says which and what was expected
        reason = str(error).strip().splitlines()[-1].strip()
        raise RecipeError(f"model_name_or_path: {folder / 'config.json'}: {reason}") from None
    set_rope_scaling(model_config, recipe, say)
    options: dict[str, Any] = {"config": model_config, "dtype": dtype, "trust_remote_code": trust}
    if implementation := attention(config):
        options["attn_implementation"] = implementation
    if config.quantization_bit:
        options["quantization_config"] = _quantization(config, model_config, dtype)
    quantized = "quantization_config" in options or hasattr(model_config, "quantization_config")
    if device.type == "cuda" and not _partitioned():
        options["device_map"] = {"": device}
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what its table of keys would show is checked below
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except ImportError as error:
        raise RecipeError(f"model_name_or_path: {folder.name} needs a package: {_first_line(error)}") from None
    except (ValueError, RuntimeError) as error:
        if "mismatch" in str(error):
            raise RecipeError(
                f"model_name_or_path: {folder}: config.json and the weights disagree about shapes"
            ) from error
        if quantized or "does not support" in str(error) or "Unrecognized" in str(error):
            raise RecipeError(f"model_name_or_path: {folder} cannot be loaded: {_first_line(error)}") from error
        raise
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise RecipeError(f"{folder}: {len(missing)} weights of the model are missing, for example {missing[0]}")
    if info["unexpected_keys"]:
        extra = sorted(info["unexpected_keys"])
        say(f"{folder.name}: {len(extra)} tensors of the files are not used, for example {extra[0]}")
    if "device_map" not in options and not quantized and not _partitioned():
        model = model.to(device)
    return model


def attention(config: ModelConfig) -> str | None:
    """transformers' name of the attention kernel asked for; None leaves the choice to it.

    Raises:
        RecipeError: a flash kernel that is not installed or has no card.
    """
    if config.flash_attn in ATTENTION:
        return ATTENTION[config.flash_attn]
    name, available, package = FLASH[config.flash_attn]
    if not torch.cuda.is_available():
        raise RecipeError(f"flash_attn: {config.flash_attn} needs an NVIDIA card; say auto or sdpa")
    if not available():
        raise RecipeError(
            f"flash_attn: {config.flash_attn} needs the package {package!r}, which is not installed; say auto or sdpa"
        )
    return name


def set_rope_scaling(model_config: Any, recipe: Recipe, say: Any) -> None:
    """Stretch rotary positions as the recipe says, in place.

    A name takes the factor that makes room for `cutoff_len`; a mapping is passed on as it stands. The same rule holds
    in training, serving and export, so a run is served as it was trained.

    Raises:
        RecipeError: the model has no rotary positions.
    """
    scaling = recipe.model.rope_scaling
    if scaling is None:
        return
    text_config = model_config.get_text_config()
    parameters = getattr(text_config, "rope_parameters", None)
    length = getattr(text_config, "max_position_embeddings", None)
    if not parameters or not length:
        raise RecipeError(f"rope_scaling: {model_config.model_type} has no rotary positions")
    if isinstance(scaling, str):
        factor = math.ceil(recipe.data.cutoff_len / length)
        if factor <= 1:
            say(f"rope_scaling: no need, the model reads {length} tokens, cutoff_len is {recipe.data.cutoff_len}")
            return
        scaling = {"rope_type": scaling, "factor": float(factor)}
        if scaling["rope_type"] in ("dynamic", "yarn", "llama3"):
            scaling["original_max_position_embeddings"] = length
        if scaling["rope_type"] == "llama3":
            scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
    text_config.rope_parameters = {**parameters, **scaling}
    text_config.max_position_embeddings = int(length * scaling.get("factor", 1.0))


def embedding_names(model: Any) -> list[str]:
    """Names of the input embedding and, when it is a matrix of its own, of the output head."""
    modules = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not modules[0].weight:
        modules.append(head)
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    return [names[module] for module in modules]


def _quantization(config: ModelConfig, model_config: Any, dtype: torch.dtype) -> Any:
    if hasattr(model_config, "quantization_config"):
        raise RecipeError("quantization_bit: the model is quantised already; leave the key out")
    require("bitsandbytes", "bitsandbytes", f"quantization_bit: {config.quantization_bit}")
    if config.quantization_bit == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type=config.quantization_type,
        bnb_4bit_use_double_quant=config.double_quantization,
    )


def _partitioned() -> bool:
    """Whether DeepSpeed ZeRO-3 or FSDP spreads the weights over the ranks and places them itself."""
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    return ("deepspeed" in sys.modules and is_deepspeed_zero3_enabled()) or is_fsdp_enabled()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
