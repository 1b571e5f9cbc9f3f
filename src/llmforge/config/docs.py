"""docs/keys.md and recipes/forge.schema.json from the schema: `python -m llmforge.config.docs` writes both.

Tests say when one is stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from llmforge.config import aliases
from llmforge.config.help import default_words
from llmforge.config.json_schema import recipe_schema
from llmforge.config.keys import GROUPS, READS, Key, keys, keys_of
from llmforge.config.training_arguments import HANDED_ON
from llmforge.config.values import optional, range_words, type_words

HEAD = """\
# Keys of a recipe

Made from the code by `python -m llmforge.config.docs`. `forge-cli recipe explain KEY` says the same for one key,
`forge-cli recipe schema > forge.schema.json` gives it to an editor. A recipe is flat; only `launch` is a group of its
own (`launch: {nproc: 2}`, or `launch.nproc=2` on the command line). `null` sets a key back to its default.
A key that another command reads is allowed; a key that nobody reads is an error.
"""


def schema_file() -> str:
    """The JSON Schema that the shipped recipes name in their first line."""
    return json.dumps(recipe_schema(), ensure_ascii=False, indent=2) + "\n"


def keys_page() -> str:
    """The whole page."""
    parts = [HEAD]
    readers = {command: {key.name for group in keys_of(command).values() for key in group} for command in READS}
    for group, cls in GROUPS.items():
        rows = [_row(key, readers) for key in keys().values() if key.group == group]
        parts.append(_table(f"## {group}\n\n{cls.__doc__}", ("Key", "Allowed", "Default", "Meaning", "Read by"), rows))
    parts.append(
        _table(
            "## transformers.TrainingArguments\n\nHanded on when given; all for `train`.",
            ("Key", "Type", "Meaning"),
            ((f"`{name}`", kind, help) for name, (kind, help) in HANDED_ON.items()),
        )
    )
    parts.append(
        _table(
            "## Other names\n\nNames of LLaMA-Factory, of its earlier releases and of earlier transformers.",
            ("Name", "Here"),
            ((f"`{name}`", f"`{a.new}`{a.note and '; ' + a.note}") for name, a in sorted(aliases.RENAMED.items())),
        )
    )
    parts.append(_grouped("## Known and without effect", "The recipe runs and says so once.", aliases.NOTED))
    parts.append(_grouped("## Known and refused", "`false`, `null`, 0 and 1 are let through.", aliases.REFUSED))
    stages = {name: f"stage {' or '.join(sorted(stages))}" for name, stages in aliases.LATER.items()}
    parts.append(_grouped("## Keys of other stages", "Known; whether the stage is there is said at `stage`.", stages))
    return "\n".join(parts)


def _row(key: Key, readers: dict[str, set[str]]) -> tuple[str, ...]:
    allowed = ", ".join(f"`{choice}`" for choice in key.choices) if key.choices else type_words(key.type)
    bounds = range_words(key.rule)
    allowed = " ".join(part for part in (allowed, bounds if not key.choices else "") if part)
    default = default_words(key)
    commands = ", ".join(command for command, names in readers.items() if key.name in names)
    stages = f" (stage {', '.join(sorted(key.rule.stages))})" if key.rule.stages else ""
    null = " or null" if optional(key.type) and key.default is not None else ""
    return f"`{key.name}`", allowed + null, f"`{default}`" if default else "", key.rule.help, commands + stages


def _grouped(title: str, intro: str, reasons: dict[str, str]) -> str:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(f"`{name}`")
    return _table(f"{title}\n\n{intro}", ("Keys", "Why"), ((", ".join(same), reason) for reason, same in names.items()))


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [title, "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    root = Path(__file__).parents[3]
    made = {"docs/keys.md": keys_page(), "recipes/forge.schema.json": schema_file()}
    for name, text in made.items():
        (root / name).write_text(text, encoding="utf-8")
        print(root / name)
