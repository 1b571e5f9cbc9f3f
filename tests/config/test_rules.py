"""Pairs of keys that disagree: each rule refuses or notes one recipe, and lets the plain recipe through."""

import pytest

from llmforge.config.load import load_recipe
from llmforge.config.rules import RULES
from llmforge.errors import RecipeError

PLAIN = ["model_name_or_path=a/b", "output_dir=runs/x", "dataset=demo"]
GRPO = [*PLAIN, "stage=grpo", "reward_funcs=ended"]  # replies drawn and rewarded, nothing amiss

# rule: command, words that break it (behind the plain recipe, which train words need)
BROKEN = {
    "model-needed": ("chat", []),
    "output-needed": ("train", ["model_name_or_path=a/b", "dataset=demo"]),
    "dataset-needed": ("train", ["model_name_or_path=a/b", "output_dir=x"]),
    "predict-rows-needed": ("predict", ["model_name_or_path=a/b"]),
    "adapter-needed": ("export", ["model_name_or_path=a/b", "finetuning_type=lora"]),
    "val-and-eval": ("train", [*PLAIN, "val_size=0.1", "eval_dataset=e"]),
    "eval-needs-rows": ("train", [*PLAIN, "eval_strategy=steps"]),
    "do-eval-needs-rows": ("train", [*PLAIN, "do_train=true", "do_eval=true"]),
    "best-needs-eval": ("train", [*PLAIN, "load_best_model_at_end=true"]),
    "best-needs-same-steps": ("train", [*PLAIN, "val_size=5", "load_best_model_at_end=true", "eval_strategy=epoch"]),
    "best-needs-multiple": (
        "train",
        [*PLAIN, "val_size=5", "load_best_model_at_end=true", "eval_strategy=steps", "eval_steps=30", "save_steps=50"],
    ),
    "stopping-needs-eval": ("train", [*PLAIN, "early_stopping_steps=2"]),
    "best-saved-needs-eval": ("train", [*PLAIN, "save_strategy=best"]),
    "resume-and-overwrite": ("train", [*PLAIN, "resume_from_checkpoint=true", "overwrite_output_dir=true"]),
    "only-model-cannot-resume": ("train", [*PLAIN, "resume_from_checkpoint=true", "save_only_model=true"]),
    "streaming-needs-steps": ("train", [*PLAIN, "streaming=true"]),
    "streaming-val-count": ("train", [*PLAIN, "streaming=true", "max_steps=5", "val_size=0.1"]),
    "streaming-max-samples": ("train", [*PLAIN, "streaming=true", "max_steps=5", "max_samples=5"]),
    "val-count-whole": ("train", [*PLAIN, "val_size=1.5"]),
    "probs-need-interleave": ("train", [*PLAIN, "interleave_probs=1.0"]),
    "probs-length": ("train", [*PLAIN, "mix_strategy=interleave_over", "interleave_probs=0.5,0.5"]),
    "probs-sum": ("train", [*PLAIN, "mix_strategy=interleave_over", "interleave_probs=0.7"]),
    "mix-keys-interleave": ("train", [*PLAIN, "mix_strategy=interleave_over", "mix_caps={a: 5}"]),
    "mix-keys-drawn": ("train", [*PLAIN, "mix_rows=100"]),
    "rl-lora": ("train", [*GRPO, "finetuning_type=full"]),
    "rl-reward": ("train", [*PLAIN, "stage=ppo"]),
    "rl-pattern": ("train", [*PLAIN, "stage=grpo", "reward_funcs=regex"]),
    "rl-sharded": ("train", [*GRPO, "deepspeed=configs/deepspeed/z2.json"]),
    "rl-not-here": ("train", [*GRPO, "loraplus_lr_ratio=16"]),
    "rl-no-dropout": ("train", [*GRPO, "lora_dropout=0.1"]),
    "rl-sampling": ("train", [*GRPO, "temperature=0.5"]),
    "rl-scores": ("train", [*GRPO, "predict_with_generate=true"]),
    "groups-whole": ("train", [*PLAIN, "stage=dpo", "truncation=split"]),
    "groups-unpacked": ("train", [*PLAIN, "stage=rm", "packing=true"]),
    "replies-not-scored": ("train", [*PLAIN, "stage=kto", "predict_with_generate=true"]),
    "no-reference": ("train", [*PLAIN, "stage=dpo", "pref_loss=simpo", "ref_model=a/c"]),
    "smoothing-sigmoid": ("train", [*PLAIN, "stage=dpo", "pref_loss=ipo", "dpo_label_smoothing=0.1"]),
    "named-asked-once": ("train", [*PLAIN, "stage=kto", "ref_model=a/c", "precompute_ref_log_probs=false"]),
    "kto-weights": ("train", [*PLAIN, "stage=kto", "kto_chosen_weight=0", "kto_rejected_weight=0"]),
    "domain-needs-both": ("train", [*PLAIN, "domain_ratio=0.5"]),
    "temperature-unused": ("train", [*PLAIN, "mix_temperature=3"]),
    "prompt-and-history": ("train", [*PLAIN, "mask_history=true", "train_on_prompt=true"]),
    "shuffling-and-lengths": ("train", [*PLAIN, "disable_shuffling=true", "group_by_length=true"]),
    "4bit-full": ("train", [*PLAIN, "quantization_bit=4", "finetuning_type=full"]),
    "4bit-zero3": ("train", [*PLAIN, "quantization_bit=4", "deepspeed=configs/deepspeed/z3.json"]),
    "4bit-merge": ("export", ["model_name_or_path=a/b", "adapter_name_or_path=a/c", "quantization_bit=4"]),
    "4bit-vocab": ("train", [*PLAIN, "quantization_bit=4", "resize_vocab=true"]),
    "tokens-need-resize": ("train", [*PLAIN, "add_tokens=<a>"]),
    "pissa-4bit": ("train", [*PLAIN, "quantization_bit=4", "lora_init=pissa"]),
    "pissa-twice": ("train", [*PLAIN, "pissa_init=true", "lora_init=gaussian"]),
    "lora-only": ("train", [*PLAIN, "use_rslora=true", "finetuning_type=full"]),
    "lora-keys-unused": ("train", [*PLAIN, "lora_target=all", "finetuning_type=full"]),
    "freeze-keys-unused": ("train", [*PLAIN, "freeze_trainable_layers=3"]),
    "freeze-zero": ("train", [*PLAIN, "freeze_trainable_layers=0", "finetuning_type=freeze"]),
    "peft-needs-type": ("train", [*PLAIN, "finetuning_type=peft"]),
    "peft-unused": ("train", [*PLAIN, "peft_kwargs={r: 4}"]),
    "adapters-and-full": ("train", [*PLAIN, "adapter_name_or_path=a/c", "finetuning_type=freeze"]),
    "new-without-old": ("train", [*PLAIN, "create_new_adapter=true"]),
    "pure-bf16-lora": ("train", [*PLAIN, "pure_bf16=true", "fp16=true"]),
    "pass-tokens": ("train", [*PLAIN, "tokens_per_pass=lots"]),
    "two-precisions": ("train", [*PLAIN, "bf16=true", "fp16=true"]),
    "fsdp-and-deepspeed": ("train", [*PLAIN, "fsdp=full_shard", "deepspeed=configs/deepspeed/z2.json"]),
    "flash-cpu": ("train", [*PLAIN, "flash_attn=fa2", "device=cpu"]),
    "fp16-cpu": ("train", [*PLAIN, "fp16=true", "device=cpu"]),
    "greedy-temperature": ("chat", ["model_name_or_path=a/b", "do_sample=false", "temperature=0.5"]),
    "hub-and-source": ("chat", ["model_name_or_path=pypi:p/m.gguf", "model_source=hf"]),
}


def test_every_rule_has_a_case():
    assert set(BROKEN) == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_speaks_where_it_is_broken(rule):
    command, words = BROKEN[rule.id]
    if rule.note:
        notes = load_recipe(words, command).notes
        assert any(rule.fix in note for note in notes), notes
        return
    with pytest.raises(RecipeError) as error:
        load_recipe(words, command)
    lines = str(error.value).splitlines()
    assert any(rule.fix in line and rule.keys[0].split(",")[0] in line for line in lines[1:]) or rule.id == "lora-only"
    assert any(rule.fix in line for line in lines)


def test_a_plain_recipe_breaks_no_rule():
    assert load_recipe(PLAIN, "train").notes == ()
    assert load_recipe(GRPO, "train").notes == ()


def test_a_rule_over_a_wrong_value_is_left_out():
    with pytest.raises(RecipeError) as error:
        load_recipe([*PLAIN, "load_best_model_at_end=true", "eval_strategy=stepz"], "train")
    assert len(str(error.value).splitlines()) == 2
