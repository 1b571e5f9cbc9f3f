"""What Forge makes of the keys that other tools and earlier releases use: renamed, noted, refused, or of a later stage.

Every key of LLaMA-Factory's recipes and argument classes is a field of config/schema.py, a row of
config/training_arguments.py, or stands in one of the tables here, so no recipe meets "no such key" for a key that has
a meaning elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alias:
    """`new` is the key that took over; `convert` turns the old value into the new one, None drops it.

    A weak alias gives way when the new key stands in the same recipe, as transformers lets warmup_steps win over
    warmup_ratio; any other contradicts it.
    """

    new: str
    convert: Callable[[Any], Any] | None = None
    note: str = ""
    weak: bool = False


def _not(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return not value


def _only_true(result: Any) -> Callable[[Any], Any]:
    """`result` for true, nothing for false."""

    def convert(value: Any) -> Any:
        return None if _not(value) else result

    return convert


def _share(value: Any) -> float | None:
    """warmup_ratio as warmup_steps, which below 1 is a share of all steps."""
    number = float(value)
    if not 0 <= number < 1:
        raise ValueError("expected a number at least 0 and below 1")
    return number


def _inside(name: str) -> Callable[[Any], dict[str, Any] | None]:
    """A value as a part of a mapping."""
    return lambda value: None if value is None else {name: value}


def _oft_target(value: Any) -> dict[str, Any]:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return {"target_modules": "all-linear" if names in (["all"], None) else names}


RENAMED: dict[str, Alias] = {
    # LLaMA-Factory, by the release that still had the name
    "evaluation_strategy": Alias("eval_strategy"),  # 0.7.1 and transformers 4.45
    "num_layer_trainable": Alias("freeze_trainable_layers"),  # 0.6.3
    "name_module_trainable": Alias("freeze_trainable_modules"),
    "checkpoint_dir": Alias("adapter_name_or_path"),  # 0.3.3
    "resume_lora_training": Alias("create_new_adapter", _not, "the other way round"),
    "dpo_loss": Alias("pref_loss"),  # 0.7.1
    "dpo_beta": Alias("pref_beta"),
    "dpo_ftx": Alias("pref_ftx"),
    "orpo_beta": Alias("pref_beta"),
    "ref_model_checkpoint": Alias("ref_model_adapters"),
    "sft_packing": Alias("packing"),
    "neat_packing": Alias("packing", _only_true(True), "packed rows never see each other", weak=True),
    "neft_alpha": Alias("neftune_noise_alpha"),
    "system_prompt": Alias("default_system"),
    "new_special_tokens": Alias("add_special_tokens"),  # 0.9.2
    "disable_gradient_checkpointing": Alias("gradient_checkpointing", _not, "the other way round", weak=True),
    "use_reentrant_gc": Alias("gradient_checkpointing_kwargs", _inside("use_reentrant")),
    "enable_liger_kernel": Alias("use_liger_kernel"),
    "use_liger": Alias("use_liger_kernel"),
    "oft_block_size": Alias("peft_kwargs", _inside("oft_block_size")),
    "oft_rank": Alias("peft_kwargs", lambda rank: {"r": rank} if rank else None),
    "reward_model_checkpoint": Alias("reward_model"),  # 0.3.3
    "oft_target": Alias("peft_kwargs", _oft_target),
    "module_dropout": Alias("peft_kwargs", _inside("module_dropout")),
    # transformers.TrainingArguments
    "warmup_ratio": Alias("warmup_steps", _share, "below 1 it is a share of all steps", weak=True),  # gone in 5
    "per_gpu_train_batch_size": Alias("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Alias("per_device_eval_batch_size"),
    "activation_checkpointing": Alias("gradient_checkpointing"),
    "activation_checkpointing_kwargs": Alias("gradient_checkpointing_kwargs"),
    "adafactor": Alias("optim", _only_true("adafactor")),
    "sortish_sampler": Alias("group_by_length", _only_true(True)),
    "generation_max_length": Alias("max_length"),
    "use_cpu": Alias("device", _only_true("cpu")),
    "no_cuda": Alias("device", _only_true("cpu")),
    "xpu_backend": Alias("ddp_backend"),
    "push_to_hub_model_id": Alias("hub_model_id"),
    "push_to_hub_token": Alias("hub_token"),
    "fsdp_min_num_params": Alias("fsdp_config", lambda n: {"min_num_params": n} if n else None),
    "fsdp_transformer_layer_cls_to_wrap": Alias("fsdp_config", _inside("transformer_layer_cls_to_wrap")),
}

# key: value as others spell it -> what it sets here
VALUES: dict[str, dict[Any, dict[str, Any]]] = {
    "quantization_method": {"bitsandbytes": {"quantization_method": "bnb"}},
    "finetuning_type": {
        "none": {"finetuning_type": "full"},
        "oft": {"finetuning_type": "peft", "peft_type": "OFT"},
    },
    "infer_backend": {"hf": {"infer_backend": "local"}, "huggingface": {"infer_backend": "local"}},
    "flash_attn": {
        "off": {"flash_attn": "disabled"},
        False: {"flash_attn": "disabled"},
        True: {"flash_attn": "fa2"},
    },
    "rope_scaling": {"none": {"rope_scaling": None}},
    "train_sampling_strategy": {
        "random": {},
        "group_by_length": {"group_by_length": True},
        "sequential": {"disable_shuffling": True},
    },
}


def _same(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


# Known keys that change nothing here; the recipe runs and says so once.
NOTED: dict[str, str] = {
    **_same("there is one tokenizer path", "use_fast_tokenizer"),
    **_same("typed control tokens are always text", "split_special_tokens"),
    **_same("new rows start from the mean of the others", "init_special_tokens"),
    **_same("weights are loaded tensor by tensor", "low_cpu_mem_usage offload_folder quantization_device_map"),
    **_same("generation always uses a key-value cache", "use_kv_cache use_cache"),
    **_same("it only makes LLaMA-Factory faster", "use_unsloth use_unsloth_gc use_v1_kernels"),
    **_same("norms and logits are computed in fp32 anyway", "upcast_layernorm upcast_lmhead_output lora_bf16_mode"),
    **_same("trainable counts are always printed", "print_param_status"),
    **_same("the hub of Modelers is not used", "om_hub_token"),
    **_same("the encoded set is kept in a cache under its own hash", "tokenized_path cache_path"),
    **_same("encoding chooses its own batches", "preprocessing_batch_size"),
    **_same("rank 0 encodes, the others read", "data_shared_file_system"),
    **_same("padding is never learned", "ignore_pad_token_for_loss"),
    **_same("every evaluation set has its own scores", "eval_on_each_dataset"),
    **_same("throughput is always logged", "include_effective_tokens_per_second include_tokens_per_second"),
    **_same("exports are always safetensors", "export_legacy_format save_safetensors"),
    **_same("beam search is not used", "length_penalty"),
    **_same("trackers write below output_dir", "logging_dir"),
    **_same(
        "SwanLab reads it from its own environment variables",
        "swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir"
        " swanlab_lark_webhook_url swanlab_lark_secret",
    ),
    **_same(
        "it belongs to use_galore",
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise",
    ),
    **_same(
        "it belongs to use_apollo",
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type"
        " apollo_layerwise apollo_scale_front",
    ),
    **_same(
        "it belongs to use_badam",
        "badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_switch_block_every"
        " badam_update_ratio badam_mask_mode badam_verbose",
    ),
    **_same("it belongs to use_asft_loss or use_eaft_loss", "asft_alpha eaft_alpha"),
    **_same(
        "the folder of a reward model names its base, adapter and kind; a URL is a server",
        "reward_model_adapters reward_model_type",
    ),
    **_same("it belongs to fp8", "fp8_backend fp8_enable_fsdp_float8_all_gather"),
    **_same(
        "it belongs to the vllm engine",
        "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config",
    ),
    **_same(
        "it belongs to the sglang engine",
        "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
    ),
    **_same(
        "processes are started by torchrun; see launch",
        "ray_run_name ray_storage_path ray_storage_filesystem ray_num_workers resources_per_worker placement_strategy"
        " ray_init_kwargs ray_scope local_rank master_addr",
    ),
    **_same(
        "it was dropped by LLaMA-Factory", "reserved_label_len split ppo_logger disable_version_checking visual_inputs"
    ),
    **_same(
        "transformers dropped it",
        "use_ipex jit_mode_eval use_mps_device fp16_opt_level half_precision_backend fp16_backend past_index"
        " tpu_num_cores tpu_metrics_debug torchdynamo mp_parameters use_legacy_prediction_loop"
        " include_inputs_for_metrics split_batches dispatch_batches push_to_hub_organization length_column_name",
    ),
}

MEDIA = "Forge trains text models; leave image, video and audio keys out"
MEGATRON = "Megatron is not used here; deepspeed: configs/deepspeed/z3.json shards the model"
KTRANSFORMERS = "KTransformers is not used here; quantization_bit: 4 or deepspeed with offload save memory"
QUANTISED_EXPORT = "quantised export is not in this version; export writes safetensors"
LOSSES = "this loss is not in this version; only the cross-entropy is"

# Known keys that cannot be honoured; false, null, 0 and empty values are let through.
REFUSED: dict[str, str] = {
    **_same("GaLore is an optimizer: write optim: galore_adamw and optim_target_modules", "use_galore"),
    **_same("APOLLO is an optimizer: write optim: apollo_adamw and optim_target_modules", "use_apollo"),
    **_same("BAdam is not in this version; optim: lomo or finetuning_type: lora save memory too", "use_badam"),
    **_same("Adam-mini is not in this version; optim: adamw_torch_8bit saves memory too", "use_adam_mini"),
    **_same("Muon is not in this version; see optim for what is", "use_muon"),
    **_same("block expansion is not in this version; finetuning_type: freeze trains some layers", "use_llama_pro"),
    **_same("mixture of depths is not in this version", "mixture_of_depths"),
    **_same("shifted attention is not in this version; rope_scaling lengthens the context", "shift_attn"),
    **_same("quantised reward models are not in this version", "reward_model_quantization_bit"),
    **_same("router losses are not in this version", "moe_aux_loss_coef"),
    **_same("training from random weights is not in this version", "train_from_scratch"),
    **_same(
        "descriptions of new tokens are not in this version; write add_special_tokens", "new_special_tokens_config"
    ),
    **_same(LOSSES, "use_dft_loss use_asft_loss use_eaft_loss"),
    **_same("length-desensitised DPO is not in this version; see pref_loss for what is", "ld_alpha"),
    **_same("the BCO term is not in this version; stage: kto learns from single verdicts", "pref_bco_weight"),
    **_same("fp8 training is not in this version; write bf16: true", "fp8"),
    **_same("write report_to: swanlab", "use_swanlab"),
    **_same("ray is not used here; launch: {nproc: N} starts one process per device", "use_ray"),
    **_same("beam search is not in this version", "num_beams eval_num_beams generation_num_beams"),
    **_same("generation keys stand in the recipe itself", "generation_config"),
    **_same("running out of memory ends with the changes to make instead", "auto_find_batch_size"),
    **_same("publish the finished folder with the hub's own client", "push_to_hub"),
    **_same("SIGTERM saves a checkpoint anyway", "enable_jit_checkpoint"),
    **_same("a resumed run goes on at its own row", "ignore_data_skip"),
    **_same("accelerate's parallelism settings are not in this version", "parallelism_config"),
    **_same("tensor parallel training is not in this version", "tp_size"),
    **_same(
        QUANTISED_EXPORT,
        "export_quantization_bit export_quantization_dataset export_quantization_nsamples export_quantization_maxlen",
    ),
    **_same("pushing an export is not in this version; use the hub's own client", "export_hub_model_id"),
    **_same(
        "it belongs to LLaMA-Factory's eval; forge-cli predict scores a dataset", "task task_dir lang n_shot save_dir"
    ),
    **_same("write per_device_eval_batch_size", "batch_size"),
    **_same(
        MEDIA,
        "media_dir image_dir image_resolution video_resolution image_max_pixels image_min_pixels image_do_pan_and_scan"
        " crop_to_patches video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video"
        " audio_sampling_rate freeze_vision_tower freeze_multi_modal_projector freeze_language_model"
        " train_mm_proj_only",
    ),
    **_same(
        MEGATRON,
        "use_mca tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size"
        " context_parallel_size sequence_parallel use_distributed_optimizer bias_activation_fusion apply_rope_fusion"
        " overlap_param_gather overlap_grad_reduce moe_grouped_gemm moe_token_dispatcher_type recompute_granularity"
        " mixed_precision use_packed_sequences export_hf_on_finish",
    ),
    **_same(
        KTRANSFORMERS,
        "use_kt kt_config kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_optimize_rule cpu_infer"
        " chunk_size mode kt_maxlen kt_use_cuda_graph kt_mode kt_force_think",
    ),
}


def _stages(stages: Iterable[str], names: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), tuple(stages))


# Known keys of stages that are not all here; STAGES decides which stage runs, these keys never are the reason.
LATER: dict[str, tuple[str, ...]] = {}
