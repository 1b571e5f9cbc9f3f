"""A row under review against its recipe's output schema, and what differs between two states of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmforge.errors import require
from llmforge.metrics.json_text import canonical_json


def schema_errors(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What a JSON Schema says against a value, in the order of its places."""
    validators = require("jsonschema", "data", "holding rows to their schema").validators
    found = validators.validator_for(dict(schema))(dict(schema)).iter_errors(value)
    lines = [("/".join(map(str, error.absolute_path)), error.message) for error in found]
    return [f"{place or '/'}: {message[:200]}" for place, message in sorted(lines)]


def changes(old: Any, new: Any, place: str = "") -> list[tuple[str, Any]]:
    """(JSON Pointer, new value) of what differs, as deep inside as both have the same keys."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys() and old:
        found = []
        for key in old:
            inner = str(key).replace("~", "~0").replace("/", "~1")
            found += changes(old[key], new[key], f"{place}/{inner}")
        return found
    return [] if canonical_json(old) == canonical_json(new) else [(place, new)]


def answer_of(made: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """What the schema is about: the training row's output where that is the teacher's whole answer, else the answer."""
    whole = "output" in made and canonical_json(made.get("out")) == canonical_json(made["output"])
    return row["output"] if whole else row.get("out")
