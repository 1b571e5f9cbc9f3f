"""The form of Fine-tune and the recipe it stands for: a mapping of keys, kept in step with its YAML text.

What a key may hold comes from config/schema.py alone; this module only says which keys the form shows first, and what
the three presets set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from llmforge.config.dump import RecipeDumper, nested
from llmforge.config.keys import Key, keys, keys_of
from llmforge.config.values import check, convert, members, optional
from llmforge.config.yaml_text import YamlProblem, parse_recipe, parse_value, shown
from llmforge.webui.words import Words, key_help

Given = dict[str, Any]

# The fields that have a place of their own, by step; the others are under Advanced.
STEPS: dict[str, tuple[str, ...]] = {
    "model": ("model_name_or_path", "template"),
    "data": ("dataset", "val_size", "cutoff_len", "max_samples"),
    "method": (
        "stage",
        "finetuning_type",
        "num_train_epochs",
        "learning_rate",
        "per_device_train_batch_size",
        "lora_rank",
    ),
}
FIELDS = tuple(key for fields in STEPS.values() for key in fields)
NEEDED = ("model_name_or_path", "dataset")
# Keys the board sets itself, or that no training reads.
HIDDEN = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "do_train", "dataset_dir", "hf_hub_token",
          "ms_hub_token")  # fmt: skip
COMMON: Given = {
    "stage": "sft",
    "finetuning_type": "lora",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "logging_steps": 1,
}
PRESETS: dict[str, Given] = {
    "quick": {"num_train_epochs": 1.0, "learning_rate": 2e-4, "lora_rank": 8, "max_samples": 200, "val_size": 0.1,
              "cutoff_len": 512, "per_device_train_batch_size": 4, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "standard": {"num_train_epochs": 3.0, "learning_rate": 1e-4, "lora_rank": 8, "val_size": 0.1, "cutoff_len": 1024,
                 "per_device_train_batch_size": 8, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "careful": {"num_train_epochs": 5.0, "learning_rate": 5e-5, "lora_rank": 16, "lora_dropout": 0.05, "val_size": 0.1,
                "cutoff_len": 2048, "per_device_train_batch_size": 8, "eval_strategy": "epoch",
                "save_strategy": "epoch", "save_total_limit": 2, "load_best_model_at_end": True},
}  # fmt: skip
OF_PRESETS = frozenset(key for preset in PRESETS.values() for key in preset)
FULL_SLOWER = 0.1  # whole weights learn at a tenth of LoRA's rate


def preset(given: Given, name: str) -> Given:
    """The mapping with a preset's keys in place of any other preset's."""
    kept = {key: value for key, value in given.items() if key not in OF_PRESETS}
    now = {**COMMON, **kept, **PRESETS[name]}
    if now.get("finetuning_type") == "full":
        now["learning_rate"] *= FULL_SLOWER
    return ordered(now)


def ordered(given: Given) -> Given:
    """The keys in the order of the form, then as they were added."""
    return {key: given[key] for key in (*FIELDS, *given) if key in given}


def to_yaml(given: Given) -> str:
    """The recipe's text."""
    lines = yaml.dump(nested(given), Dumper=RecipeDumper, allow_unicode=True, sort_keys=False, width=10**6)
    return lines if given else ""


def from_yaml(text: str) -> tuple[Given, str]:
    """The mapping that a text stands for, and what is wrong with the text ("" when nothing is)."""
    try:
        items, problems = parse_recipe(text, "recipe", ("launch",))
    except YamlProblem as error:
        return {}, f"line {error.line}: {error.message}"
    given = {item.key: item.value for item in items if item.key != "launch"}
    told = "\n".join(f"{p.origin.text.removeprefix('recipe ') if p.origin else ''}: {p.message}" for p in problems)
    return given, told


def with_value(given: Given, name: str, text: Any) -> Given:
    """The mapping with what was typed for a key; nothing typed, or its default, takes the key out."""
    rest = {key: value for key, value in given.items() if key != name}
    if text is None or text == "" or text == []:
        return rest
    key = keys().get(name)
    value = _read(key, text)
    if key is not None and name not in FIELDS and _typed(key, value) == key.default:
        return rest
    return ordered({**given, name: _typed(key, value) if key else value})


def _read(key: Key | None, text: Any) -> Any:
    """What a field's text stands for; a choice is itself, although YAML takes `no` and `off` for false."""
    if not isinstance(text, str) or (key is not None and key.choices is not None and text in key.choices):
        return text
    return parse_value(text)


def _typed(key: Key, value: Any) -> Any:
    """The value as its type where it has one, so that 1e-4 is a number in the YAML; else as it was given."""
    try:
        return convert(value, key.type)
    except ValueError:
        return value


def wrong(words: Words, name: str, value: Any) -> str | None:
    """What is wrong with one key's value, in the reader's language; None when nothing is."""
    key = keys().get(name)
    if key is None or value is None or value == "":
        return None
    given = _read(key, value)
    try:
        converted = convert(given, key.type)
        fine = check(converted, key.rule, key.type, key.choices, given) is None
    except ValueError:
        fine = False
    return None if fine else words("train.wrong", got=shown(given), expected=expectation(words, key))


def expectation(words: Words, key: Key) -> str:
    """What a key takes: its kind, its range, or its choices."""
    if key.choices is not None:
        return words("train.one_of", names=", ".join(map(str, key.choices)))
    kinds = [words(f"train.kind.{_kind(member)}") for member in members(key.type)]
    text = words("train.or").join(dict.fromkeys(kinds))
    bounds = {"above": key.rule.above, "at_least": key.rule.at_least, "below": key.rule.below,
              "at_most": key.rule.at_most}  # fmt: skip
    told = [words(f"train.bound.{name}", bound=f"{bound:.16g}") for name, bound in bounds.items() if bound is not None]
    return words("train.and").join([text, *told]) if told else text


def _kind(member: Any) -> str:
    return (getattr(member, "__origin__", None) or member).__name__


def advanced(words: Words, search: str, group: str, stage: str) -> list[Key]:
    """Keys of training beside the form's own, that match the search, of a group ("" is all) and a stage."""
    found = []
    wanted = search.lower().split()
    for name, members_ in keys_of("train").items():
        for key in members_:
            text = f"{key.name} {key.rule.help} {help_of(words, key)}".lower()
            used = not key.rule.stages or stage in key.rule.stages
            listed = key.name not in FIELDS and key.name not in HIDDEN and not key.rule.secret
            if listed and used and group in ("", name) and all(word in text for word in wanted):
                found.append(key)
    return sorted(found, key=lambda key: not all(word in key.name.lower() for word in wanted)) if wanted else found


def help_of(words: Words, key: Key) -> str:
    """What a key is for, in the reader's language; the schema has the English."""
    return key_help(words.language).get(key.name, key.rule.help)


def is_switch(key: Key) -> bool:
    """Whether a key is true or false and nothing else."""
    return members(key.type) == [bool] and not optional(key.type)


def text_of(value: Any) -> str:
    """A value as a text field shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


def without_defaults(values: Mapping[str, Any]) -> Given:
    """A resolved recipe's keys that differ from their defaults; what the board sets itself is left out."""
    known = keys()
    kept = {}
    for name, value in values.items():
        key = known.get(name)
        if name in HIDDEN or (key is not None and value == key.default and name not in FIELDS):
            continue
        kept[name] = value
    return ordered(kept)
