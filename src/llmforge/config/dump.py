"""A resolved recipe as YAML: for the run folder, and for people with the origin of every value. Secrets stay out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llmforge.config.keys import keys
from llmforge.config.schema import Recipe
from llmforge.config.training_arguments import is_secret
from llmforge.config.yaml_text import RecipeLoader

# Keys whose values may name files: written as absolute paths, so that a run is found from any working directory.
PATH_KEYS = (
    "model_name_or_path",
    "adapter_name_or_path",
    "dataset",
    "eval_dataset",
    "template",
    "deepspeed",
    "dataset_dir",
    "plugins",
    "reward_model",
)


class RecipeDumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or the recipe loader would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


RecipeDumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *RecipeLoader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *RecipeLoader.yaml_implicit_resolvers}
}
RecipeDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None),
)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """All values by key, "launch.nproc" included, without secrets and without keys that are null by default and now."""
    values: dict[str, Any] = {}
    for name, key in keys().items():
        value = getattr(getattr(recipe, key.group), key.field)
        if not key.rule.secret and not (value is None and key.default is None):
            values[name] = value
    values |= {name: value for name, value in recipe.hf.items() if not is_secret(name)}
    return values | ({"plugins": list(recipe.plugins)} if recipe.plugins else {})


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that loads to the same recipe: with absolute paths, without secrets."""
    return _render(_with_absolute_paths(recipe_values(recipe)), {})


def dump_given(recipe: Recipe) -> str:
    """The keys that were given as YAML, with their values as they were understood; defaults and secrets left out."""
    values = {name: value for name, value in recipe_values(recipe).items() if name in recipe.origins}
    return _render(_with_absolute_paths(values), {})


def show_recipe(recipe: Recipe) -> str:
    """The resolved recipe with the origin of every value as a comment."""
    values = recipe_values(recipe)
    return _render(values, {n: recipe.origins[n].text if n in recipe.origins else "default" for n in values})


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`launch.nproc` as `launch: {nproc: ...}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        group, _, field = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[field] = value
    return tree


def _render(values: dict[str, Any], comments: dict[str, str]) -> str:
    lines: list[str] = []
    group = ""
    for name, value in values.items():
        key = keys().get(name)
        if (new := key.group if key else "transformers.TrainingArguments") != group:
            group = new
            lines += ["", f"# {group}"] if lines else [f"# {group}"]
        head, _, field = name.rpartition(".")
        if head and f"{head}:" not in lines:
            lines.append(f"{head}:")
        first, *rest = _yaml({field: value}).rstrip("\n").split("\n")
        if name in comments:
            first = f"{first:<40}  # {comments[name]}"
        lines += [f"  {line}" if head else line for line in (first, *rest)]
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    return yaml.dump(_escaped(value), Dumper=RecipeDumper, allow_unicode=True, sort_keys=False, width=10**9)


def _escaped(value: Any) -> Any:
    r"""Text with `${` as `\${`, so that loading does not take it for a reference."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return {key: _escaped(item) for key, item in value.items()} if isinstance(value, dict) else value


def _with_absolute_paths(values: dict[str, Any]) -> dict[str, Any]:
    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return os.path.abspath(value) if isinstance(value, str) and value and os.path.exists(Path(value)) else value

    return {name: absolute(value) if name in PATH_KEYS else value for name, value in values.items()}


def spoken(words: Sequence[str]) -> list[str]:
    """A command line as it may be written down: `key=value` and `--key value` of secret keys without the value."""
    said: list[str] = []
    for word in words:
        key, equals, _ = word.partition("=")
        hidden = _is_secret_key(key.lstrip("-"))
        behind = bool(said) and said[-1].startswith("--") and "=" not in said[-1] and _is_secret_key(said[-1][2:])
        said.append("***" if behind else f"{key}=***" if hidden and equals else word)
    return said


def _is_secret_key(name: str) -> bool:
    return keys()[name].rule.secret if name in keys() else is_secret(name)
