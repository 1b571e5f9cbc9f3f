"""`forge-cli COMMAND --help`: the keys a command reads, grouped, from the schema."""

from __future__ import annotations

from llmforge.config.keys import GROUPS, Key, keys_of
from llmforge.config.values import range_words, type_words


def command_help(command: str, what: str, example: str, options: str = "") -> str:
    """The whole help text of one command."""
    lines = [
        f"forge-cli {command} RECIPE [key=value ...]",
        "",
        what,
        f"  $ {example}",
        *([f"  {options}"] if options else []),
        "",
    ]
    for group, members in keys_of(command).items():
        lines.append((GROUPS[group].__doc__ or group).split("\n")[0])
        lines += [f"  {key.name:<28} {describe(key)}" for key in members]
        lines.append("")
    if command == "train":
        lines.append(
            "Every key of transformers.TrainingArguments works too. More on one key: forge-cli recipe explain KEY"
        )
    return "\n".join(lines).rstrip()


def describe(key: Key) -> str:
    """Help, type, range or choices, and default of a key in one line."""
    allowed = ", ".join(str(c) for c in key.choices) if key.choices else ""
    kind = allowed or " ".join(part for part in (type_words(key.type), range_words(key.rule)) if part)
    default = "" if key.default in (None, [], {}, "") else f"; default {default_words(key)}"
    return f"{key.rule.help} [{kind}{default}]"


def default_words(key: Key) -> str:
    """A default as a recipe would spell it."""
    value = key.default
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
