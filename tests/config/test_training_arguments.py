"""The static tables against the real class, and the keys that other releases had."""

import dataclasses
from collections import Counter

import pytest

from llmforge.config import aliases
from llmforge.config.keys import keys
from llmforge.config.load import load_recipe
from llmforge.config.training_arguments import HANDED_ON
from llmforge.errors import RecipeError

# Fields of transformers.TrainingArguments and Seq2SeqTrainingArguments 4.40 to 4.57 that 5.23 no longer has.
DROPPED = """
overwrite_output_dir evaluation_strategy per_gpu_train_batch_size per_gpu_eval_batch_size warmup_ratio logging_dir
save_safetensors no_cuda use_ipex use_mps_device jit_mode_eval fp16_opt_level half_precision_backend fp16_backend
past_index tpu_num_cores tpu_metrics_debug group_by_length fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap
ray_scope torchdynamo mp_parameters push_to_hub_model_id push_to_hub_organization push_to_hub_token
include_inputs_for_metrics include_tokens_per_second split_batches dispatch_batches adafactor sortish_sampler
generation_max_length generation_num_beams generation_config predict_with_generate xpu_backend tp_size
"""

# Fields of LLaMA-Factory's argument classes and of their older releases.
LLAMA_FACTORY = """
freeze_trainable_layers freeze_trainable_modules freeze_extra_modules additional_target lora_alpha lora_dropout
lora_rank lora_target loraplus_lr_ratio loraplus_lr_embedding use_rslora use_dora pissa_init pissa_iter pissa_convert
create_new_adapter module_dropout oft_rank oft_block_size oft_target pref_beta pref_ftx pref_bco_weight pref_loss
dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm
ppo_target ppo_whiten_rewards ref_model ref_model_adapters ref_model_quantization_bit reward_model
reward_model_adapters reward_model_quantization_bit reward_model_type ld_alpha use_galore galore_target galore_rank
galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo apollo_target apollo_rank
apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front
use_badam badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode
badam_verbose use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key
swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret pure_bf16 stage finetuning_type use_llama_pro
use_adam_mini use_mca use_muon use_dft_loss use_asft_loss asft_alpha use_eaft_loss freeze_vision_tower
freeze_multi_modal_projector freeze_language_model compute_accuracy disable_shuffling early_stopping_steps plot_loss
include_effective_tokens_per_second model_name_or_path adapter_name_or_path adapter_folder cache_dir
use_fast_tokenizer resize_vocab split_special_tokens add_tokens add_special_tokens new_special_tokens_config
init_special_tokens model_revision low_cpu_mem_usage rope_scaling flash_attn shift_attn mixture_of_depths use_unsloth
use_unsloth_gc enable_liger_kernel moe_aux_loss_coef disable_gradient_checkpointing use_reentrant_gc upcast_layernorm
upcast_lmhead_output train_from_scratch infer_backend offload_folder use_kv_cache use_v1_kernels infer_dtype
hf_hub_token ms_hub_token om_hub_token print_param_status trust_remote_code quantization_method quantization_bit
quantization_type double_quantization quantization_device_map fp8 fp8_backend fp8_enable_fsdp_float8_all_gather
image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps
video_maxlen use_audio_in_video audio_sampling_rate export_dir export_size export_device export_quantization_bit
export_quantization_dataset export_quantization_nsamples export_quantization_maxlen export_legacy_format
export_hub_model_id vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen
sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend use_kt kt_optimize_rule cpu_infer chunk_size mode
kt_maxlen kt_use_cuda_graph kt_mode kt_force_think template dataset eval_dataset dataset_dir media_dir cutoff_len
train_on_prompt mask_history streaming buffer_size mix_strategy interleave_probs overwrite_cache
preprocessing_batch_size preprocessing_num_workers max_samples eval_num_beams ignore_pad_token_for_loss val_size
eval_on_each_dataset packing neat_packing tool_format default_system enable_thinking tokenized_path
data_shared_file_system do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty
length_penalty skip_special_tokens ray_run_name ray_storage_path ray_storage_filesystem ray_num_workers
resources_per_worker placement_strategy ray_init_kwargs task task_dir batch_size seed lang n_shot save_dir dpo_beta
orpo_beta dpo_loss dpo_ftx num_layer_trainable name_module_trainable checkpoint_dir reward_model_checkpoint
ref_model_checkpoint resume_lora_training sft_packing cache_path neft_alpha system_prompt use_cache new_special_tokens
image_resolution video_resolution image_dir train_mm_proj_only visual_inputs badam_switch_block_every lora_bf16_mode
reserved_label_len split ppo_logger disable_version_checking kt_config kt_cpu_activation kt_weight_path
kt_non_expert_weight_path tensor_model_parallel_size sequence_parallel pipeline_model_parallel_size
use_distributed_optimizer bias_activation_fusion apply_rope_fusion overlap_param_gather overlap_grad_reduce
expert_model_parallel_size moe_grouped_gemm moe_token_dispatcher_type recompute_granularity context_parallel_size
mixed_precision use_packed_sequences export_hf_on_finish
"""

KNOWN = [*keys(), *HANDED_ON, *aliases.RENAMED, *aliases.NOTED, *aliases.REFUSED, *aliases.LATER]


def test_every_key_stands_in_one_table():
    assert [name for name, count in Counter(KNOWN).items() if count > 1] == []


def test_every_field_of_the_installed_class_is_known():
    transformers = pytest.importorskip("transformers")
    fields = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert fields - set(KNOWN) - set(aliases.VALUES) == set()
    assert set(HANDED_ON) - fields == set()


@pytest.mark.parametrize("names", [DROPPED, LLAMA_FACTORY], ids=["transformers 4", "LLaMA-Factory"])
def test_every_key_of_other_releases_is_known(names):
    assert set(names.split()) - set(KNOWN) == set()


def test_renamed_keys_lead_to_keys_that_exist():
    targets = {alias.new for alias in aliases.RENAMED.values()}
    targets |= {key for table in aliases.VALUES.values() for sets in table.values() for key in sets}
    assert targets - set(keys()) - set(HANDED_ON) == set()


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("evaluation_strategy=steps", "eval_strategy", "steps"),
        ("warmup_ratio=0.1", "warmup_steps", 0.1),
        ("disable_gradient_checkpointing=true", "gradient_checkpointing", False),
        ("resume_lora_training=false", "create_new_adapter", True),
        ("num_layer_trainable=3", "freeze_trainable_layers", 3),
        ("checkpoint_dir=a/b,c/d", "adapter_name_or_path", ["a/b", "c/d"]),
        ("quantization_method=bitsandbytes", "quantization_method", "bnb"),
        ("finetuning_type=none", "finetuning_type", "full"),
        ("infer_backend=huggingface", "infer_backend", "local"),
        ("flash_attn=off", "flash_attn", "disabled"),
        ("train_sampling_strategy=group_by_length", "group_by_length", True),
        ("train_sampling_strategy=sequential", "disable_shuffling", True),
        ("use_cpu=true", "device", "cpu"),
        ("neat_packing=true", "packing", True),
        ("oft_block_size=32", "peft_kwargs", {"oft_block_size": 32}),
    ],
)
def test_old_names_and_values_are_translated_and_said(given, key, value):
    recipe = load_recipe([given], "show")
    groups = (recipe.model, recipe.data, recipe.finetune, recipe.train, recipe.serve)
    assert next(getattr(group, key) for group in groups if hasattr(group, key)) == value
    assert len(recipe.notes) == 1
    assert recipe.notes[0].startswith("command line: ")


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["warmup_steps=20", "warmup_ratio=0.1"], 20),
        (["warmup_ratio=0.1", "warmup_steps=0"], 0.1),
        (["warmup_ratio=0"], 0),
    ],
)
def test_warmup_steps_win_over_warmup_ratio_as_in_transformers(words, steps):
    assert load_recipe(words, "show").train.warmup_steps == steps


def test_values_that_ask_for_nothing_are_silent():
    words = ["use_galore=false", "num_beams=1", "export_quantization_bit=null", "overwrite_cache=false", "use_kt=false"]
    assert load_recipe(words, "show").notes == ()


@pytest.mark.parametrize("name", sorted(aliases.REFUSED))
def test_a_refused_key_is_named_with_its_reason(name):
    with pytest.raises(RecipeError) as error:
        load_recipe([f"{name}=true"], "show")
    assert str(error.value) == f"the recipe cannot run:\n  command line: {name}: {aliases.REFUSED[name]}"


def test_every_optimizer_and_tracker_of_the_installed_transformers_is_known():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    from llmforge.config.names import OPTIMIZERS, TRACKERS

    assert {name.value for name in OptimizerNames} <= set(OPTIMIZERS)
    assert set(INTEGRATION_TO_CALLBACK) <= set(TRACKERS)
