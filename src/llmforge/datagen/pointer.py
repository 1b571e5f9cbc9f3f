"""Places inside a JSON value: JSON Pointers (RFC 6901), and the dotted names people write for them."""

from __future__ import annotations

import re
from typing import Any

from llmforge.metrics.json_text import MISSING


def pointer_of(field: str) -> str:
    """`out.points[0]` as /out/points/0; what starts with a slash is a pointer already."""
    if field.startswith("/") or not field:
        return field
    return "/" + "/".join(part.replace("~", "~0") for part in re.sub(r"\[(\d+)\]", r".\1", field).split("."))


def value_at(value: Any, pointer: str) -> Any:
    """The value a pointer names, or MISSING."""
    for part in _parts(pointer):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def with_value(value: Any, pointer: str, new: Any) -> Any:
    """A copy of `value` with another value in an existing place.

    Raises:
        KeyError: there is no such place.
    """
    parts = _parts(pointer)
    if not parts:
        return new
    head, rest = parts[0], "".join(f"/{_escaped(part)}" for part in parts[1:])
    if isinstance(value, dict) and head in value:
        return {key: with_value(item, rest, new) if key == head else item for key, item in value.items()}
    if isinstance(value, list) and head.isdecimal() and int(head) < len(value):
        return [with_value(item, rest, new) if i == int(head) else item for i, item in enumerate(value)]
    raise KeyError(pointer)


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
