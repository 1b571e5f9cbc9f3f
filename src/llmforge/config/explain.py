"""`recipe explain KEY`: everything that is declared about a key, its old names included."""

from __future__ import annotations

from llmforge.config import aliases
from llmforge.config.help import default_words
from llmforge.config.keys import READS, Key, keys, keys_of
from llmforge.config.training_arguments import HANDED_ON
from llmforge.config.translate import nearest_key
from llmforge.config.values import optional, range_words, type_words
from llmforge.errors import RecipeError


def explain(name: str) -> str:
    """What a key means, in lines of "what: value".

    Raises:
        RecipeError: no such key; the message holds the nearest.
    """
    if name in keys():
        return _own(keys()[name])
    if name in HANDED_ON:
        kind, help = HANDED_ON[name]
        return (
            f"{name}: {help}\n  type: {kind}\n  read by: transformers.TrainingArguments, in forge-cli train{_old(name)}"
        )
    if name in aliases.RENAMED:
        alias = aliases.RENAMED[name]
        return f"{name} is now {alias.new}{alias.note and '; ' + alias.note}.\n\n{explain(alias.new)}"
    if name in aliases.VALUES:
        settings = (
            " and ".join(f"{key}: {value}" for key, value in sets.items()) for sets in aliases.VALUES[name].values()
        )
        return f"{name}: another way to say {', or '.join(s for s in settings if s)}."
    if name in aliases.LATER:
        return f"{name}: only for stage {' or '.join(sorted(aliases.LATER[name]))}."
    if name in aliases.NOTED:
        return f"{name}: known and without effect here; {aliases.NOTED[name]}."
    if name in aliases.REFUSED:
        return f"{name}: known and refused; {aliases.REFUSED[name]}."
    if name == "extends":
        return "extends: Recipe files, beside this one, whose keys come first; this file's keys win."
    if name == "plugins":
        return "plugins: Python files that register names: templates, stages, metrics, formats."
    raise RecipeError(f"{name}: no such key{nearest_key(name)}")


def _own(key: Key) -> str:
    lines = [f"{key.name}: {key.rule.help}", f"  type: {type_words(key.type)}{' or null' * optional(key.type)}"]
    lines.append(f"  default: {default_words(key) or 'empty'}")
    if bounds := range_words(key.rule):
        lines.append(f"  range: {bounds}")
    if key.choices:
        lines.append(f"  choices: {', '.join(map(str, key.choices))}")
    if key.rule.path:
        where = (
            "beside the recipe, then in the working directory"
            if key.rule.path == "input"
            else "in the working directory"
        )
        lines.append(f"  path: looked up {where}")
    commands = [command for command in READS if any(key in group for group in keys_of(command).values())]
    lines.append(f"  read by: {', '.join(commands)}")
    if key.rule.stages:
        lines.append(f"  stages: {', '.join(sorted(key.rule.stages))}")
    if key.rule.secret:
        lines.append("  secret: never shown, never written")
    return "\n".join(lines) + _old(key.name)


def _old(name: str) -> str:
    old = [alias for alias, to in aliases.RENAMED.items() if to.new == name]
    return f"\n  also written: {', '.join(old)}" if old else ""
