"""Keys and values of LLaMA-Factory's text recipes (examples/, v0 and v1), as facts, and the page that counts them.

`python tests/config/llama_factory_recipes.py` writes docs/compatibility.md anew.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError

# Most training recipes differ from this one in a few keys; None takes a key out.
TRAIN: dict[str, Any] = {
    "model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "trust_remote_code": True,
    "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all",
    "dataset": "identity,alpaca_en_demo", "template": "qwen3_nothink", "cutoff_len": 2048, "max_samples": 1000,
    "preprocessing_num_workers": 16, "dataloader_num_workers": 4,
    "output_dir": "saves/qwen3-4b/lora/sft", "logging_steps": 10, "save_steps": 500, "plot_loss": True,
    "overwrite_output_dir": True, "save_only_model": False, "report_to": "none",
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1e-4,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "ddp_timeout": 180000000, "resume_from_checkpoint": "null",
}  # fmt: skip
EVAL = {"val_size": 0.1, "per_device_eval_batch_size": 1, "eval_strategy": "steps", "eval_steps": 500}
LLAMA3 = {"model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "template": "llama3", "overwrite_cache": True}
QWEN2 = {"model_name_or_path": "Qwen/Qwen2-1.5B-Instruct", "template": "qwen", "overwrite_cache": True}
FULL = {"finetuning_type": "full", "lora_rank": None, "lora_target": None, "learning_rate": 1e-5}
OFT = {"finetuning_type": "oft", "lora_rank": None, "lora_target": None, "oft_block_size": 32, "oft_target": "all"}
EXPORT = {"export_dir": "saves/merged", "export_size": 5, "export_device": "cpu", "export_legacy_format": False}
KT = {"use_kt": True, "kt_cpu_activation": "retain", "kt_config": {"kt_backend": "AMXBF16"}, "overwrite_cache": True}
FP8 = {"fp8": True, "fp8_backend": "te", "use_fast_tokenizer": True, "do_eval": True}
MEGATRON = {
    "tensor_model_parallel_size": 1, "sequence_parallel": False, "pipeline_model_parallel_size": 4,
    "bias_activation_fusion": True, "apply_rope_fusion": True, "use_distributed_optimizer": True,
    "overlap_param_gather": True, "overlap_grad_reduce": True, "moe_grouped_gemm": True,
    "moe_token_dispatcher_type": "alltoall", "expert_model_parallel_size": 2, "recompute_granularity": "full",
}  # fmt: skip
ASCEND = {
    "use_v1_kernels": True,
    "flash_attn": "fa2",
    "dataset": "alpaca_en_demo",
    "template": "qwen3",
    "max_steps": 500,
}
APOLLO = {
    "use_apollo": True,
    "apollo_layerwise": True,
    "apollo_target": "all",
    "apollo_rank": 128,
    "apollo_scale": 32.0,
}
BADAM = {"use_badam": True, "badam_mode": "layer", "badam_switch_mode": "ascending", "badam_switch_interval": 50}
GALORE = {"use_galore": True, "galore_layerwise": True, "galore_target": "all", "galore_rank": 128, "galore_scale": 2.0}
PPO = {"stage": "ppo", "reward_model": "saves/llama3-8b/lora/reward", "max_new_tokens": 512, "top_k": 0, "top_p": 0.9}

CHAT = {
    "model_name_or_path": "Qwen/Qwen3-4B",
    "template": "qwen3",
    "infer_backend": "huggingface",
    "trust_remote_code": True,
}
MERGE = {"model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "template": "qwen3_nothink", "trust_remote_code": True}
PREDICT = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "adapter_name_or_path": "saves/llama3-8b/lora/sft",
    "stage": "sft", "do_predict": True, "finetuning_type": "lora", "eval_dataset": "identity,alpaca_en_demo",
    "template": "llama3", "cutoff_len": 2048, "max_samples": 50, "overwrite_cache": True,
    "preprocessing_num_workers": 16, "output_dir": "saves/llama3-8b/lora/predict", "overwrite_output_dir": True,
    "per_device_eval_batch_size": 1, "predict_with_generate": True, "ddp_timeout": 180000000,
}  # fmt: skip
V1 = {
    "model": "Qwen/Qwen3-0.6B", "model_class": "llm", "kernel_config": {"name": "auto"},
    "dist_config": {"name": "fsdp2", "dcp_path": None}, "train_dataset": "data/v1_sft_demo.yaml",
    "output_dir": "outputs/test", "micro_batch_size": 1, "cutoff_len": 2048, "learning_rate": 1e-4, "max_steps": 10,
    "sample_backend": "hf", "max_new_tokens": 128,
}  # fmt: skip
V1_LORA = {"name": "lora", "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all"}
V1_FREEZE = {
    "name": "freeze",
    "freeze_trainable_layers": 2,
    "freeze_trainable_modules": "all",
    "freeze_extra_modules": None,
}

# name: command, keys
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "train_lora/qwen3_lora_sft": ("train", TRAIN | {"dataset": "identity"}),
    "train_lora/qwen3_lora_sft_ds3": ("train", TRAIN | {"deepspeed": "examples/deepspeed/ds_z3_config.json"}),
    "train_lora/qwen3_lora_sft_ray": ("train", TRAIN | {"ray_num_workers": 4, "output_dir": "tmp_dir"}),
    "train_lora/qwen3_preprocess": ("train", TRAIN | {"tokenized_path": "saves/qwen3-4b/dataset/sft"}),
    "train_lora/qwen3_lora_pretrain": ("train", TRAIN | {"stage": "pt", "dataset": "c4_demo", "template": None}),
    "train_lora/qwen3_lora_dpo": ("train", TRAIN | {"stage": "dpo", "pref_beta": 0.1, "pref_loss": "sigmoid"}),
    "train_lora/qwen3_lora_kto": ("train", TRAIN | {"stage": "kto", "pref_beta": 0.1}),
    "train_lora/qwen3_lora_reward": ("train", TRAIN | {"stage": "rm"}),
    "train_lora/llama3_lora_ppo": ("train", TRAIN | LLAMA3 | PPO),
    "train_lora/llama3_lora_eval": (
        "predict",
        MERGE | {"task": "mmlu_test", "lang": "en", "n_shot": 5, "save_dir": "saves/eval", "batch_size": 4},
    ),
    "train_qlora/qwen3_lora_sft_otfq": ("train", TRAIN | {"quantization_bit": 4, "quantization_method": "bnb"}),
    "train_qlora/qwen3_lora_sft_bnb_npu": ("train", TRAIN | {"quantization_bit": 4, "double_quantization": False}),
    "train_qlora/llama3_lora_sft_gptq": (
        "train",
        TRAIN | LLAMA3 | {"model_name_or_path": "TechxGenus/Llama-3-8B-GPTQ"},
    ),
    "train_qlora/llama3_lora_sft_awq": (
        "train",
        TRAIN | LLAMA3 | EVAL | {"model_name_or_path": "TechxGenus/Llama-AWQ"},
    ),
    "train_qlora/llama3_lora_sft_aqlm": ("train", TRAIN | LLAMA3 | EVAL | {"model_name_or_path": "ISTA-DASLab/AQLM"}),
    "train_full/qwen3_full_sft": ("train", TRAIN | FULL | {"deepspeed": "examples/deepspeed/ds_z3_config.json"}),
    "train_full/qwen3_full_sft_autotp": (
        "train",
        TRAIN | FULL | {"deepspeed": "examples/deepspeed/ds_z2_autotp_config.json", "use_v1_kernels": True},
    ),
    "merge_lora/qwen3_lora_sft": ("export", MERGE | EXPORT | {"adapter_name_or_path": "saves/qwen3-4b/lora/sft"}),
    "merge_lora/qwen3_full_sft": ("export", MERGE | EXPORT | {"model_name_or_path": "saves/qwen3-4b/full/sft"}),
    "merge_lora/qwen3_gptq": (
        "export",
        MERGE | EXPORT | {"export_quantization_bit": 4, "export_quantization_dataset": "data/c4_demo.jsonl"},
    ),
    "inference/qwen3": ("chat", CHAT),
    "inference/qwen3_lora_sft": ("chat", CHAT | {"adapter_name_or_path": "saves/qwen3-4b/lora/sft"}),
    "inference/qwen3_full_sft": ("chat", CHAT | {"model_name_or_path": "saves/qwen3-4b/full/sft"}),
    "inference/llama3_vllm": ("api", CHAT | {"infer_backend": "vllm", "vllm_enforce_eager": True}),
    "extras/nlg_eval/llama3_lora_predict": ("train", PREDICT),
    "extras/adam_mini/qwen2_full_sft": ("train", TRAIN | QWEN2 | FULL | EVAL | {"use_adam_mini": True}),
    "extras/apollo/llama3_full_sft": (
        "train",
        TRAIN | LLAMA3 | FULL | EVAL | APOLLO | {"pure_bf16": True, "bf16": None},
    ),
    "extras/badam/llama3_full_sft": ("train", TRAIN | LLAMA3 | FULL | EVAL | BADAM),
    "extras/dft/qwen2_full_sft": ("train", TRAIN | QWEN2 | FULL | {"use_dft_loss": True}),
    "extras/eaft/qwen25_05b_eaft_full": ("train", TRAIN | QWEN2 | FULL | {"use_eaft_loss": True}),
    "extras/asft/qwen2_full_asft": ("train", TRAIN | QWEN2 | FULL | {"use_asft_loss": True, "asft_alpha": 0.1}),
    "extras/fp8/llama3_fp8_deepspeed_sft": ("train", TRAIN | LLAMA3 | FULL | EVAL | FP8),
    "extras/fp8/llama3_fp8_fsdp_sft": (
        "train",
        TRAIN | LLAMA3 | FULL | EVAL | FP8
        | {"fsdp": "full_shard auto_wrap", "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    ),
    "extras/fsdp_qlora/llama3_lora_sft": (
        "train",
        TRAIN | LLAMA3 | EVAL | {"quantization_bit": 4, "lora_target": "q_proj,v_proj", "bf16": None, "fp16": True},
    ),
    "extras/galore/llama3_full_sft": (
        "train",
        TRAIN | LLAMA3 | FULL | EVAL | GALORE | {"bf16": None, "pure_bf16": True},
    ),
    "extras/llama_pro/llama3_freeze_sft": (
        "train",
        TRAIN | LLAMA3 | EVAL
        | {"finetuning_type": "freeze", "lora_rank": None, "lora_target": None, "freeze_trainable_layers": 8,
           "freeze_trainable_modules": "all", "use_llama_pro": True, "model_name_or_path": "models/llama3-8b-pro"},
    ),
    "extras/loraplus/llama3_lora_sft": ("train", TRAIN | LLAMA3 | EVAL | {"loraplus_lr_ratio": 16.0}),
    "extras/mod/llama3_full_sft": (
        "train",
        TRAIN | LLAMA3 | FULL | {"mixture_of_depths": "convert", "optim": "paged_adamw_8bit", "bf16": None,
                                 "pure_bf16": True},
    ),
    "extras/muon/qwen2_full_sft": ("train", TRAIN | QWEN2 | FULL | {"use_muon": True}),
    "extras/oft/llama3_oft_sft": ("train", TRAIN | LLAMA3 | OFT),
    "extras/pissa/llama3_lora_sft": (
        "train",
        TRAIN | LLAMA3 | {"pissa_init": True, "pissa_iter": 16, "pissa_convert": True},
    ),
    "extras/qoft/llama3_oft_sft_awq": ("train", TRAIN | LLAMA3 | OFT | {"model_name_or_path": "TechxGenus/Llama-AWQ"}),
    "extras/qoft/llama3_oft_sft_gptq": (
        "train",
        TRAIN | LLAMA3 | OFT | {"model_name_or_path": "TechxGenus/Llama-GPTQ"},
    ),
    "extras/qoft/llama3_oft_sft_bnb_npu": ("train", TRAIN | LLAMA3 | OFT | {"quantization_bit": 4}),
    "ascend/qwen3_full_sft_fsdp2": ("train", TRAIN | FULL | ASCEND),
    "ascend/qwen3moe_full_sft_fsdp": (
        "train",
        TRAIN | FULL | ASCEND | {"disable_gradient_checkpointing": False, "save_only_model": True, "seed": 1234},
    ),
    "ascend/qwen3_lora_sft_fsdp": (
        "train",
        TRAIN | {"lora_rank": 10, "lora_alpha": 16, "lora_dropout": 0.0,
                 "lora_target": "q_proj, k_proj, v_proj, o_proj",
                 "dataset_dir": "data", "val_size": 0.0, "packing": False, "logging_dir": "saves/qwen3/runs",
                 "warmup_ratio": None, "warmup_steps": 0, "max_grad_norm": 1.0},
    ),
    "ktransformers/qwen3moe_lora_sft_kt": ("train", TRAIN | {"use_kt": True, "dataset": "identity, alpaca_en_demo"}),
    "ktransformers/deepseek_v3_lora_sft_kt": ("train", TRAIN | KT | {"template": "deepseek3"}),
    "megatron/qwen3_moe_full": ("train", TRAIN | FULL | MEGATRON),
    "v1/train_lora/train_lora_sft": ("train", V1 | {"peft_config": V1_LORA}),
    "v1/train_freeze/train_freeze_sft": ("train", V1 | {"peft_config": V1_FREEZE}),
    "v1/train_full/train_full_deepspeed": (
        "train",
        V1 | {"dist_config": {"name": "deepspeed", "config_file": "examples/deepspeed/ds_z3_config.json"}},
    ),
    "v1/train_full/train_full_muon": ("train", V1 | {"optim_config": {"name": "muon"}, "template": "qwen3_nothink"}),
    "v1/train_qlora/quantization": (
        "train",
        V1 | {"peft_config": V1_LORA, "quant_config": {"name": "bnb", "quantization_bit": 4}},
    ),
    "v1/train_batching_strategy/padding_free": (
        "train",
        V1 | {"batching_strategy": "padding_free", "flash_attn": "flash_attention_2"},
    ),
}  # fmt: skip


def recipe_text(keys: dict[str, Any]) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump({k: None if v == "null" else v for k, v in keys.items() if v is not None}, sort_keys=False)


def load_as_llama_factory_would(name: str) -> str | None:
    """Load a recipe in a folder where the outputs of earlier runs exist; None, or why it was refused."""
    command, keys = RECIPES[name]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for path in ("saves/qwen3-4b/lora/sft", "saves/qwen3-4b/full/sft", "saves/llama3-8b/lora/sft",
                         "models/llama3-8b-pro", "data"):  # fmt: skip
                Path(path).mkdir(parents=True)
            Path("recipe.yaml").write_text(recipe_text(keys), encoding="utf-8")
            load_recipe(["recipe.yaml"], command)
        except RecipeError as error:
            return "; ".join(re.sub(r"^  (line \d+: )?", "", line) for line in str(error).splitlines()[1:])
        finally:
            os.chdir(before)
    return None


def compatibility_page() -> str:
    """docs/compatibility.md."""
    refused = {name: reason for name in RECIPES if (reason := load_as_llama_factory_would(name))}
    v1 = [name for name in RECIPES if name.startswith("v1/")]
    v0 = len(RECIPES) - len(v1)
    loads = v0 - sum(name not in v1 for name in refused)
    rows = "\n".join(
        f"| `{name}` | {refused[name]} |" if name in refused else f"| `{name}` | loads |" for name in RECIPES
    )
    return f"""\
# Recipes of LLaMA-Factory

Made by `python tests/config/llama_factory_recipes.py`, which holds the keys and values of LLaMA-Factory's example
recipes for text models as facts; a test loads each of them. Names of data sets and models are not looked up.

**{loads} of {v0} recipes load as they are**; the others ask for something that is named below, and none fails on a key
that is only unknown. Recipes of the second engine ("v1") are translated but for one key: their `train_dataset` names a
YAML list of data sets, which has to become entries of `dataset_info.json` ({sum(n not in refused for n in v1)} of \
{len(v1)} load as they are).

Not counted are recipes for images, video and audio, which are refused by their first such key.

| Recipe | Here |
|---|---|
{rows}
"""


if __name__ == "__main__":
    page = Path(__file__).parents[2] / "docs/compatibility.md"
    page.write_text(compatibility_page(), encoding="utf-8")
    print(page)
