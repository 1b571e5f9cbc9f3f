"""The JSON Schema (draft 2020-12) of a recipe, for editors: the same types, choices and ranges as the loader's."""

from __future__ import annotations

import typing
from typing import Any

from llmforge.config import aliases
from llmforge.config.keys import NESTED, Key, keys
from llmforge.config.training_arguments import HANDED_ON, hint_of
from llmforge.config.values import members, optional

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
# Keys that make several runs of a recipe: link -> its keys, key -> its values (docs/chains.md).
SEVERAL: dict[str, tuple[str, dict[str, Any]]] = {
    "chain": ("Links that run one after the other: name -> the keys of its recipe.", {"type": ["object", "null"]}),
    "sweep": ("Values to try: key -> list; one run for every combination.", {"type": "array", "minItems": 1}),
}
REFERENCE = {"$ref": "#/$defs/reference"}  # `${seed}` may stand where any value may


def recipe_schema() -> dict[str, Any]:
    """The schema as a JSON value."""
    properties: dict[str, Any] = {
        "extends": {"description": "Recipe files whose keys come first.", **_shape(str | list[str])},
        "plugins": {"description": "Python files that register names.", **_shape(str | list[str])},
    }
    for group, (help, links) in SEVERAL.items():
        properties[group] = {"type": "object", "description": help, "additionalProperties": links}
    for group in NESTED:
        inner = {key.field: _property(key) for key in keys().values() if key.group == group}
        properties[group] = {"type": "object", "properties": inner, "additionalProperties": False}
    properties |= {key.name: _property(key) for key in keys().values() if key.group not in NESTED}
    properties |= {name: {"description": help, **_shape(hint_of(name))} for name, (_, help) in HANDED_ON.items()}
    for name, alias in aliases.RENAMED.items():
        properties[name] = {"deprecated": True, "description": f"Now {alias.new}."}
    for name in aliases.VALUES.keys() - properties.keys():
        properties[name] = {"deprecated": True, "enum": list(aliases.VALUES[name])}
    for name, reason in aliases.NOTED.items():
        properties[name] = {"deprecated": True, "description": f"No effect: {reason}."}
    for name, stages in aliases.LATER.items():
        properties[name] = {"description": f"Only for stage {' or '.join(sorted(stages))}."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Forge recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {"reference": {"type": "string", "pattern": r"^.*\$\{.+\}.*$"}},
    }


def _property(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": key.rule.help, **_shape(key.type, key)}
    if not key.rule.secret and key.default is not None:
        schema["default"] = key.default
    return schema


def _shape(hint: Any, key: Key | None = None) -> dict[str, Any]:
    forms: list[dict[str, Any]] = []
    for member in members(hint):
        forms += _forms(member, key)
    if optional(hint):
        forms.append({"type": "null"})
    if not any(form == {"type": "string"} for form in forms):
        forms.append(REFERENCE)
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _forms(member: Any, key: Key | None) -> list[dict[str, Any]]:
    kind = typing.get_origin(member) or member
    if kind is list:
        (item,) = typing.get_args(member)
        items = _item(item, key)
        return [
            {"type": "array", "items": items},
            {"type": "string"},
            *([items] if items.get("type") == "number" else []),
        ]
    form: dict[str, Any] = {"type": TYPES[kind]}
    if key and key.choices is not None and kind in (str, int, float):
        return [{"enum": list(key.choices)}]
    if key and kind in (int, float):
        form |= _range(key)
    return [form]


def _item(item: Any, key: Key | None) -> dict[str, Any]:
    if key and key.choices is not None:
        return {"enum": list(key.choices)}
    forms = [form for member in members(item) for form in _forms(member, None)]
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _range(key: Key) -> dict[str, float]:
    rule = key.rule
    bounds = {
        "exclusiveMinimum": rule.above,
        "minimum": rule.at_least,
        "exclusiveMaximum": rule.below,
        "maximum": rule.at_most,
    }
    return {word: bound for word, bound in bounds.items() if bound is not None}
