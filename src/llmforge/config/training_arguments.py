"""Keys of transformers.TrainingArguments that Forge hands on, as a table, because importing the class imports torch.

Keys of the class that Forge reads itself are fields of config/schema.py; those that the class dropped between 4.40 and
5.23, and those that Forge decides otherwise, stand in config/aliases.py. A test compares all three with the class.
"""

from __future__ import annotations

from typing import Any

HINTS: dict[str, Any] = {
    "bool": bool | None,
    "int": int | None,
    "float": float | None,
    "str": str | None,
    "list": list[str] | None,
    "dict": dict | None,
    "str or dict": dict | str | None,
    "str or bool": bool | str | None,
}

# name: type, meaning
HANDED_ON: dict[str, tuple[str, str]] = {
    "optim_args": ("str", "Arguments of the optimizer as `key=value,key=value`."),
    "optim_target_modules": ("list", "Modules that GaLore and APOLLO optimizers act on; all-linear for all."),
    "average_tokens_across_devices": ("bool", "Forge always divides by the tokens of the whole global batch."),
    "bf16_full_eval": ("bool", "Evaluate with the whole model in bf16."),
    "fp16_full_eval": ("bool", "Evaluate with the whole model in fp16."),
    "tf32": ("bool", "TF32 matrix products on Ampere and newer cards."),
    "gradient_checkpointing_kwargs": ("str or dict", "Arguments of torch.utils.checkpoint."),
    "torch_compile": ("bool", "Compile the model."),
    "torch_compile_backend": ("str", "Backend of torch.compile."),
    "torch_compile_mode": ("str", "Mode of torch.compile."),
    "use_liger_kernel": ("bool", "Liger's fused Triton kernels; needs a GPU and the package liger-kernel."),
    "liger_kernel_config": ("dict", "Which Liger kernels to use."),
    "torch_empty_cache_steps": ("int", "Empty the allocator's cache every so many steps."),
    "logging_strategy": ("str", "When to log: no, steps, epoch."),
    "logging_first_step": ("bool", "Log the first step too."),
    "log_on_each_node": ("bool", "Log once per machine instead of once."),
    "logging_nan_inf_filter": ("bool", "Leave NaN losses out of the logged mean; see nan_policy."),
    "include_num_input_tokens_seen": ("str or bool", "Count input tokens: no, all, non_padding."),
    "log_level": ("str", "Log level of the first process."),
    "log_level_replica": ("str", "Log level of the other processes."),
    "disable_tqdm": ("bool", "No progress bar."),
    "project": ("str", "Project name for trackers."),
    "trackio_space_id": ("str", "Space of the trackio tracker."),
    "trackio_bucket_id": ("str", "Bucket of the trackio tracker."),
    "trackio_static_space_id": ("str or bool", "Static space of the trackio tracker."),
    "eval_delay": ("float", "Steps or epochs before the first evaluation."),
    "prediction_loss_only": ("bool", "Only the loss in evaluation."),
    "eval_on_start": ("bool", "Evaluate once before training."),
    "eval_do_concat_batches": ("bool", "Join evaluation outputs of all batches."),
    "eval_use_gather_object": ("bool", "Gather evaluation outputs as objects."),
    "eval_accumulation_steps": ("int", "Evaluation batches kept on the device before moving to the CPU."),
    "include_for_metrics": ("list", "What metric functions receive besides predictions."),
    "batch_eval_metrics": ("bool", "Compute metrics batch by batch."),
    "save_on_each_node": ("bool", "Save on every machine."),
    "hub_token": ("str", "Token for pushing; better set HF_TOKEN."),
    "hub_private_repo": ("bool", "Make the pushed repository private."),
    "hub_model_id": ("str", "Repository to push to."),
    "hub_strategy": ("str", "What is pushed and when."),
    "hub_always_push": ("bool", "Push although the last push is running."),
    "hub_revision": ("str", "Branch to push to."),
    "restore_callback_states_from_checkpoint": ("bool", "When resuming, restore callbacks."),
    "full_determinism": ("bool", "Deterministic kernels; slower."),
    "accelerator_config": ("str or dict", "Settings of accelerate.Accelerator."),
    "dataloader_drop_last": ("bool", "Drop the last, smaller batch."),
    "dataloader_num_workers": ("int", "Processes that load batches."),
    "dataloader_pin_memory": ("bool", "Pinned memory for batches."),
    "dataloader_persistent_workers": ("bool", "Keep loader processes between epochs."),
    "dataloader_prefetch_factor": ("int", "Batches each loader process prepares ahead."),
    "dataloader_multiprocessing_context": ("str", "How loader processes start: fork, spawn, forkserver."),
    "dataloader_in_order": ("bool", "Batches in their order."),
    "remove_unused_columns": ("bool", "Forge's batches hold no unused columns."),
    "label_names": ("list", "Names of label fields."),
    "ddp_find_unused_parameters": ("bool", "DDP: look for parameters without gradient."),
    "ddp_bucket_cap_mb": ("int", "DDP: size of gradient buckets."),
    "ddp_broadcast_buffers": ("bool", "DDP: broadcast buffers."),
    "ddp_static_graph": ("bool", "DDP: the graph never changes."),
    "ddp_backend": ("str", "Communication: nccl, gloo, mpi, ccl, hccl."),
    "fsdp": ("str or bool", "Fully sharded data parallel, for example `full_shard auto_wrap`."),
    "fsdp_config": ("str or dict", "Settings of FSDP: a mapping or a JSON file."),
    "debug": ("str", "Debug switches: underflow_overflow."),
    "skip_memory_metrics": ("bool", "Leave memory out of the metrics."),
}


def hint_of(name: str) -> Any:
    """The type of a handed-on key."""
    return HINTS[HANDED_ON[name][0]]


def is_secret(name: str) -> bool:
    """Whether a handed-on key is never shown or written."""
    return name == "hub_token"
