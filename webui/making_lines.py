"""Slots and checks of a recipe that makes data as lines that people write: `topic: a, b, c`, one expression a line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from llmforge.webui.refusal import Refusal

LINES = ("slots", "checks")  # the keys that are edited so
NAMED = re.compile(r"([^\W\d]\w*)\s*[:：]\s*(.*)")
BETWEEN = re.compile(r"\s*[,，、]\s*")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
Value = dict[str, Any] | list[Any]


def to_lines(value: Any) -> str:
    """A key's value as lines; a slot that is more than a choice stands as its YAML in braces."""
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_shown(how)}" for name, how in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")


def from_lines(key: str, text: str) -> Value:
    """The value that lines stand for: a mapping for slots, a mapping or a list of expressions for checks.

    Raises:
        Refusal: a line that is neither `name: a, b, c` nor `name: {...}`; names the line.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if key == "checks":
        named = [NAMED.fullmatch(line) for _, line in lines]
        if named and all(named):
            return {match[1]: match[2] for match in named if match}
        return [line for _, line in lines]
    return dict(_slot(number, line) for number, line in lines)


def _slot(number: int, line: str) -> tuple[str, dict[str, Any]]:
    match = NAMED.fullmatch(line)
    if match is None or not match[2]:
        raise Refusal("make.bad_slot", "slots", line=number)
    if not match[2].startswith("{"):
        return match[1], {"choice": [_item(item) for item in BETWEEN.split(match[2]) if item]}
    try:
        how = yaml.safe_load(match[2])
    except yaml.YAMLError:
        how = None
    if not isinstance(how, dict):
        raise Refusal("make.bad_slot", "slots", line=number)
    return match[1], how


def _item(text: str) -> Any:
    if not NUMBER.fullmatch(text):
        return text
    return float(text) if "." in text else int(text)


def _shown(how: Any) -> str:
    if isinstance(how, str):
        return how
    if isinstance(how, dict) and list(how) == ["choice"] and isinstance(how["choice"], list):
        items = [str(item) for item in how["choice"]]
        if [_item(item) for item in items] == how["choice"] and not any(BETWEEN.search(item) for item in items):
            return ", ".join(items)
    flow: str = yaml.safe_dump(how, allow_unicode=True, default_flow_style=True, sort_keys=False, width=10**6)
    return flow.strip().removesuffix("\n...")
