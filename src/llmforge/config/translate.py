"""Other spellings into Forge's own: nested groups, dotted keys, renamed keys, keys that are only known or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmforge.config import aliases
from llmforge.config.given import Given, Problem
from llmforge.config.keys import NESTED, keys
from llmforge.config.schema import Origin
from llmforge.config.training_arguments import HANDED_ON, is_secret
from llmforge.config.values import members
from llmforge.config.yaml_text import shown
from llmforge.errors import nearest

TOP_LEVEL = ("plugins",)  # keys of a recipe that belong to no group


@dataclass
class Translated:
    """A layer in Forge's spelling; `noted` are keys known but without effect."""

    given: dict[str, Given] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    later: list[Given] = field(default_factory=list)
    flags: tuple[str, ...] = ()


def translate(items: list[Given], flags: tuple[str, ...] = ()) -> Translated:
    """Translate the keys of one layer; a key and its old name in the same layer contradict each other.

    `flags` are words such as --prompt that the command itself reads; a slip may mean one of them.
    """
    result = Translated(flags=flags)
    parts = [part for item in items for part in _parts(item, result)]
    weak = {name for name, alias in aliases.RENAMED.items() if alias.weak}
    for part in sorted(parts, key=lambda p: p.key in weak):  # a weak alias looks at what is already there
        _take(part, result)
    result.problems += _refused([part for part in parts if part.key in aliases.REFUSED and _asks(part.value)])
    return result


def _refused(items: list[Given]) -> list[Problem]:
    """One problem for all keys that are refused for the same reason, at the line of the first."""
    reasons: dict[str, list[Given]] = {}
    for item in items:
        reasons.setdefault(aliases.REFUSED[item.key], []).append(item)
    return [Problem(same[0].origin, f"{_names(same)}: {reason}") for reason, same in reasons.items()]


def _names(items: list[Given]) -> str:
    names = [item.key for item in items]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _asks(value: Any) -> bool:
    """Whether a value asks for something: not false, null, 0, 1 (as in "one beam") or empty."""
    return value is True or (
        value not in (None, False, 0, 1, "", [], {}) and str(value).lower() not in ("none", "false")
    )


def _parts(item: Given, result: Translated) -> list[Given]:
    """`launch: {nproc: 2}` is `launch.nproc`, and `peft_kwargs.r` a part of the mapping `peft_kwargs`."""
    if item.key in NESTED:
        if not isinstance(item.value, Mapping):
            result.problems.append(Problem(item.origin, f"{item.key}: got {shown(item.value)}, expected a mapping"))
            return []
        return [Given(f"{item.key}.{name}", value, item.origin) for name, value in item.value.items()]
    head, _, rest = item.key.partition(".")
    if rest and head in keys() and dict in [getattr(m, "__origin__", m) for m in members(keys()[head].type)]:
        value: Any = item.value
        for name in reversed(rest.split(".")):
            value = {name: value}
        return [Given(head, value, item.origin)]
    return [item]


def _take(item: Given, result: Translated) -> None:
    key, value, origin = item.key, item.value, item.origin
    if key in aliases.RENAMED:
        _rename(item, aliases.RENAMED[key], result)
    elif isinstance(value, (str, bool)) and value in aliases.VALUES.get(key, {}):
        sets = aliases.VALUES[key][value]
        result.notes.append(f"{origin.text}: {key}: {item.text or value} is here {_settings(sets) or 'the default'}")
        for name, new in sets.items():
            _set(Given(name, new, origin), result)
    elif key in aliases.VALUES and key not in keys():
        known = ", ".join(map(str, aliases.VALUES[key]))
        result.problems.append(Problem(origin, f"{key}: got {shown(value)}, expected one of {known}"))
    elif key in keys() or key in HANDED_ON or key in TOP_LEVEL:
        _set(item, result)
    elif key in aliases.LATER:
        result.later.append(item)
    elif key in aliases.NOTED:
        if _asks(value):
            result.notes.append(f"{origin.text}: {key}: no effect here; {aliases.NOTED[key]}")
    elif key not in aliases.REFUSED:
        result.problems.append(Problem(origin, f"{key}: no such key{nearest_key(key, result.flags)}"))


def _rename(item: Given, alias: aliases.Alias, result: Translated) -> None:
    try:
        value = alias.convert(item.value) if alias.convert else item.value
    except (ValueError, TypeError) as error:
        wanted = str(error) if str(error).startswith("expected") else "expected a number"
        result.problems.append(Problem(item.origin, f"{item.key}: got {shown(item.value)}, {wanted}"))
        return
    if alias.weak and alias.new in result.given and result.given[alias.new].value not in (None, False, 0):
        result.notes.append(f"{item.origin.text}: {item.key}: no effect here; {alias.new} decides")
        return
    if value is None:
        return
    result.notes.append(f"{item.origin.text}: {item.key} is now {alias.new}{alias.note and '; ' + alias.note}")
    origin = Origin(f"{item.origin.text}, as {item.key}", item.origin.file, item.origin.line)
    given = Given(alias.new, value, origin, None if alias.convert else item.text)
    if alias.weak:
        result.given[alias.new] = given
    else:
        _set(given, result, old=item.key)


def _settings(sets: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {'null' if value is None else str(value).lower() if value is True else value}"
        for key, value in sets.items()
    )


def _set(item: Given, result: Translated, old: str | None = None) -> None:
    before = result.given.get(item.key)
    if before is None:
        result.given[item.key] = item
    elif isinstance(before.value, dict) and isinstance(item.value, dict):
        result.given[item.key] = Given(item.key, merged(before.value, item.value), item.origin)
    elif before.value != item.value:
        first = before.origin.text.rpartition(", as ")[2] if ", as " in before.origin.text else item.key
        says, said = (_unless_secret(item.key, value) for value in (item.value, before.value))
        message = f"{old or item.key}{says} contradicts {first}{said}; keep one of them"
        result.problems.append(Problem(item.origin, message))


def _unless_secret(key: str, value: Any) -> str:
    secret = is_secret(key) or (key in keys() and keys()[key].rule.secret)
    return "" if secret else f": {shown(value)}"


def merged(base: dict, over: dict) -> dict:
    """Two mappings as one; where both hold a mapping these are merged too, otherwise `over` wins."""
    both = {
        k: merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }
    return base | both


def nearest_key(name: str, flags: tuple[str, ...] = ()) -> str:
    """ " Did you mean 'x'?" over everything a recipe may hold; a nested key also by its last word."""
    for group in NESTED:
        if name in {k.field for k in keys().values() if k.group == group}:
            return f". Did you mean '{group}.{name}'?"
    flag_names = [flag.lstrip("-") for flag in flags]
    close = nearest(name, [*flag_names, *keys(), *HANDED_ON, *NESTED, *TOP_LEVEL, "extends"]) or nearest(
        name, [*aliases.RENAMED, *aliases.LATER, *aliases.NOTED]
    )
    for flag in flags:
        close = close.replace(f"'{flag.lstrip('-')}'", f"'{flag}'")
    return "." + close if close else ""
