"""All keys a recipe may hold, by name, with their types and rules, read from the dataclasses of config/schema.py."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.config import names, schema
from llmforge.config.option import Rule
from llmforge.registry import Registry

# The groups of a Recipe; the keys of a flat one stand at the top of a recipe, those of a nested one under its name.
GROUPS: dict[str, type] = {
    "model": schema.ModelConfig,
    "data": schema.DataConfig,
    "finetune": schema.FinetuneConfig,
    "rl": schema.RlConfig,
    "train": schema.TrainConfig,
    "generate": schema.GenerateConfig,
    "eval": schema.EvalConfig,
    "serve": schema.ServeConfig,
    "export": schema.ExportConfig,
    "launch": schema.LaunchConfig,
}
NESTED = ("launch",)


# Groups a command reads; a key with modes of its own is shown where these name it.
READS: dict[str, tuple[str, ...]] = {
    "train": ("model", "data", "finetune", "rl", "train", "generate", "eval", "launch"),
    "predict": ("model", "data", "generate", "eval", "serve", "train"),
    "chat": ("model", "data", "generate", "serve"),
    "api": ("model", "data", "generate", "serve"),
    "export": ("model", "data", "export"),
}
# Of the data keys those that matter without training data.
DATA_WITHOUT_ROWS = ("template", "default_system", "enable_thinking", "tool_format", "cutoff_len")
DATA_OF_PREDICT = (
    *DATA_WITHOUT_ROWS,
    "dataset",
    "eval_dataset",
    "dataset_dir",
    "max_samples",
    "truncation",
    "val_size",
)


# Of the training keys those that predict reads.
TRAIN_OF_PREDICT = ("output_dir", "overwrite_output_dir", "per_device_eval_batch_size", "seed")


@dataclass(frozen=True)
class Key:
    """One key of a recipe: `name` as users write it ("launch.nproc" for a nested one), `field` in its group."""

    name: str
    group: str
    field: str
    type: Any
    default: Any
    rule: Rule

    @property
    def choices(self) -> tuple | None:
        """Allowed values; asked for late, because plugins add names to the tables."""
        choices = self.rule.choices
        if isinstance(choices, str):
            table: Registry = getattr(names, choices)
            return tuple(sorted(table))
        return tuple(choices) if choices is not None else None


@functools.cache
def keys() -> Mapping[str, Key]:
    """Every declared key by its name."""
    found: dict[str, Key] = {}
    for group, cls in GROUPS.items():
        types = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            name = f"{group}.{item.name}" if group in NESTED else item.name
            default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
            found[name] = Key(name, group, item.name, types[item.name], default, item.metadata["rule"])
    return found


@functools.cache
def flag_keys() -> frozenset[str]:
    """Keys of type bool, which may stand on a command line without a value."""
    return frozenset(n for n, key in keys().items() if bool in (key.type, *getattr(key.type, "__args__", ())))


def keys_of(command: str) -> dict[str, list[Key]]:
    """Keys that a command reads, by group; all for a command that reads no recipe of its own."""
    found: dict[str, list[Key]] = {}
    for key in keys().values():
        if command not in READS or _reads(command, key):
            found.setdefault(key.group, []).append(key)
    return found


def _reads(command: str, key: Key) -> bool:
    if key.group not in READS[command] or (key.rule.modes and command not in key.rule.modes):
        return False
    if key.group == "data" and command != "train":
        return key.name in (DATA_OF_PREDICT if command == "predict" else DATA_WITHOUT_ROWS)
    return key.group != "train" or command == "train" or key.name in TRAIN_OF_PREDICT
