"""From what a user wrote to the type of a key: `"1e-4"` is a number where one is expected, `true` never is.

`convert` and `check` raise ValueError with what was expected; the caller adds key, place and value.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from llmforge.config.option import Rule
from llmforge.config.yaml_text import shown
from llmforge.errors import nearest

BOOL_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
# In a union the type that says most is tried first, so that `nproc: "2"` is a number and `nproc: auto` a word.
ORDER = (bool, int, float, dict, list, str)


def members(hint: Any) -> list[Any]:
    """The types a hint allows, without None, the most telling first."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    parts = tuple(p for p in parts if p is not type(None))
    return sorted(parts, key=lambda p: ORDER.index(typing.get_origin(p) or p) if p is not Any else len(ORDER))


def optional(hint: Any) -> bool:
    """Whether null is a value of this type."""
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def type_words(hint: Any) -> str:
    """A type in the words of an error: "a whole number or text"."""
    words = ["a list of numbers" if p == list[float] else NAMES[typing.get_origin(p) or p] for p in members(hint)]
    return " or ".join(words)


def convert(value: Any, hint: Any, text: str | None = None) -> Any:
    """`value` as the type `hint`; `text` is the spelling of a scalar in the file.

    Raises:
        ValueError: what was expected, in words.
    """
    if hint is Any or (value is None and optional(hint)):
        return value
    for member in members(hint):
        try:
            return _as_type(value, member, text)
        except (ValueError, OverflowError):
            continue
    raise ValueError(type_words(hint))


def _as_type(value: Any, hint: Any, text: str | None) -> Any:
    kind = typing.get_origin(hint) or hint
    if kind is list:
        return _as_list(value, hint, text)
    if kind is dict:
        return _as_dict(value)
    if isinstance(value, (list, dict)) or value is None:
        raise ValueError
    if kind is str:
        return value if isinstance(value, str) else (text if text is not None else str(value))
    if isinstance(value, str):
        word = value.strip()
        if kind is bool:
            if word.lower() not in BOOL_WORDS:
                raise ValueError
            return BOOL_WORDS[word.lower()]
        return int(word) if kind is int else _finite(float(word))
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise ValueError
    if kind is int:
        if value != int(value):
            raise ValueError
        return int(value)
    return _finite(float(value))


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError
    return number


def _as_list(value: Any, hint: Any, text: str | None) -> list:
    (item,) = typing.get_args(hint) or (Any,)
    if value is None:
        return []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif not isinstance(value, list):
        return [convert(value, item, text)]
    return [convert(part, item) for part in value if part is not None]


def _as_dict(value: Any) -> dict:
    if isinstance(value, str) and value.strip().startswith("{"):  # transformers' habit: a mapping as JSON text
        value = json.loads(value)
    if not isinstance(value, dict):
        raise ValueError
    return value


def check(value: Any, rule: Rule, hint: Any, choices: Sequence | None, given: Any) -> str | None:
    """What is wrong with a converted value, or None; ranges and choices hold for each item of a list.

    `given` is the value as it was written, for the message.
    """
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if choices is not None and item not in choices:
            known = [str(choice) for choice in choices]
            close = nearest(item, known)
            return f"got {shown(item)}, expected one of {', '.join(known)}{'.' + close if close else ''}"
        if isinstance(item, (int, float)) and not isinstance(item, bool) and not within(item, rule):
            got = shown(item if isinstance(value, list) else given)
            return f"got {got}, expected {type_words(hint)} {range_words(rule)}"
    return None


def within(number: float, rule: Rule) -> bool:
    """Whether a number is in the range of a rule."""
    return not (
        (rule.above is not None and number <= rule.above)
        or (rule.at_least is not None and number < rule.at_least)
        or (rule.below is not None and number >= rule.below)
        or (rule.at_most is not None and number > rule.at_most)
    )


def range_words(rule: Rule) -> str:
    """A range in words: "at least 0 and below 1"; "" without one."""
    bounds = {"above": rule.above, "at least": rule.at_least, "below": rule.below, "at most": rule.at_most}
    return " and ".join(f"{word} {bound:.16g}" for word, bound in bounds.items() if bound is not None)
