"""Baichuan and Baichuan2 7B as Llama: the same computation under other names, so no remote code is needed.

Source: modeling_baichuan.py beside the weights of baichuan-inc/Baichuan2-7B-Chat. Differences from Llama: q, k and v
lie in one matrix `W_pack` (rows in this order), and Baichuan2's output head (`NormHead`) divides each row of its weight
by the row's norm before use. That is done once here, so a head that learns is free to leave the unit sphere. The 13B
models use ALiBi instead of rotary positions, so they are no Llama.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llmforge.errors import RecipeError
from llmforge.model.cache import Say
from llmforge.model.weights import INDEX, PICKLED, SINGLE, check_weights, weight_files

KEPT_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "hidden_act", "initializer_range", "rms_norm_eps", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
BAICHUAN2_VOCABULARY = 125696
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "special_tokens_map.json", "generation_config.json")


def is_published_layout(folder: Path) -> bool:
    """Whether config.json of `folder` names a Baichuan model."""
    try:
        return _config(folder).get("model_type") == "baichuan"
    except (OSError, ValueError, AttributeError):
        return False


def convert(folder: Path, target: Path, say: Say) -> None:
    """Write the weights in `folder` as a Llama model into the empty `target`, shard by shard.

    Raises:
        RecipeError: a 13B model (ALiBi), or damaged weights.
    """
    config = _config(folder)
    refuse_alibi(config, folder)
    if weight_files(folder):
        check_weights(folder)
    say(f"converting {folder.name} to the Llama layout (once; the result is kept in the cache)")
    weight_map: dict[str, str] = {}
    shards = weight_files(folder) or _pickled_shards(folder)
    total = 0
    for i, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        total += _write_shard(shard, target / name, weight_map, normalise_head=_has_norm_head(config))
        say(f"  {i} of {len(shards)} weight files")
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (target / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    (target / "config.json").write_text(json.dumps(llama_config(config), indent=2), encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    _write_tokenizer_config(folder, target)


def refuse_alibi(config: dict[str, Any], folder: Path) -> None:
    """Only the 7B models have rotary positions: hidden size 4096 and `max_position_embeddings` in the config."""
    if config.get("hidden_size") == 5120 or "max_position_embeddings" not in config:
        raise RecipeError(
            f"model_name_or_path: {folder.name} is a Baichuan 13B model (ALiBi positions), which is not supported; "
            "the 7B models are"
        )


def llama_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of the same model as Llama; position and norm constants are those of modeling_baichuan.py."""
    return {
        **{key: config[key] for key in KEPT_SETTINGS if key in config},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config["num_attention_heads"],
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": config.get("torch_dtype", "bfloat16"),
    }


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _has_norm_head(config: dict[str, Any]) -> bool:
    """Baichuan2 has it; Baichuan-1, with 64000 tokens and no z loss in its config, has a plain head."""
    return config["vocab_size"] == BAICHUAN2_VOCABULARY or "z_loss_weight" in config


def _pickled_shards(folder: Path) -> list[Path]:
    single, index = (folder / name for name in PICKLED)
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    if single.is_file():
        return [single]
    raise RecipeError(f"model_name_or_path: {folder} holds no weights")


def _write_shard(shard: Path, target: Path, weight_map: dict[str, str], *, normalise_head: bool) -> int:
    """Convert one file and note its tensors in `weight_map`; returns its bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    if shard.suffix == ".safetensors":
        tensors = load_file(shard)
    else:
        tensors = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name.endswith("self_attn.W_pack.weight"):
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                out[name.replace("W_pack", part)] = rows.contiguous()
        elif name == "lm_head.weight" and normalise_head:
            out[name] = torch.nn.functional.normalize(tensor.float()).to(tensor.dtype)
        elif not name.endswith("rotary_emb.inv_freq"):  # computed from the config
            out[name] = tensor.contiguous()
    save_file(out, target, metadata={"format": "pt"})
    weight_map.update(dict.fromkeys(out, target.name))
    return sum(t.numel() * t.element_size() for t in out.values())


def _write_tokenizer_config(folder: Path, target: Path) -> None:
    """The tokenizer's settings without the pointer to remote code."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings.pop("auto_map", None)
    settings["tokenizer_class"] = (
        "PreTrainedTokenizerFast" if (target / "tokenizer.json").is_file() else "LlamaTokenizer"
    )
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
