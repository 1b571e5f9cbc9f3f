"""JSON answers inside text: parsed strictly, compared by meaning."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

MISSING = object()  # what `field_at` returns for a field that is not there; None is a JSON value


class JsonAnswer(NamedTuple):
    """A JSON object or array, and the text that equal answers share whatever their key order and spacing."""

    value: dict[str, Any] | list[Any]
    canonical: str


def parse_json(text: str) -> JsonAnswer | None:
    """The object or array that `text` is, or None.

    The whole text has to be JSON: a code fence or a word around it makes it invalid, since the program that reads the
    answer would fail on it. NaN, Infinity and unpaired surrogates are not JSON (RFC 8259, RFC 7493). Numbers, strings
    and literals alone are plain text to a metric. 1 and 1.0 are the same number, 1 and true are not the same value.
    """
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_number)
        canonical = canonical_json(value)
        canonical.encode()  # an unpaired surrogate fails here instead of in the middle of writing a report
    except (ValueError, RecursionError):
        return None
    return JsonAnswer(value, canonical)


def canonical_json(value: Any) -> str:
    """One text per JSON value: keys sorted, no spaces, no ASCII escapes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def field_at(value: Any, path: str) -> Any:
    """The value of a field, `a` or `a.b` for one inside another; MISSING when it is not there."""
    if isinstance(value, dict) and path in value:
        return value[path]
    head, dot, rest = path.partition(".")
    if dot and isinstance(value, dict) and head in value:
        return field_at(value[head], rest)
    return MISSING


def leaves(value: Any) -> list[tuple[str, str]]:
    """(path, canonical value) of every leaf, list positions replaced by `[*]`: `points[*].lat`.

    An empty object or list is a leaf of its own, so that `[]` and a missing field differ. A name that holds a dot or a
    bracket is quoted: `["a.b"]`.
    """
    found: list[tuple[str, str]] = []
    open_values = [("", value)]  # a list of our own, since nesting may be as deep as Python's recursion limit
    while open_values:
        path, inner = open_values.pop()
        if isinstance(inner, dict) and inner:
            open_values += [(_join(path, name), inner[name]) for name in reversed(inner)]
        elif isinstance(inner, list) and inner:
            open_values += [(f"{path}[*]", item) for item in reversed(inner)]
        else:
            found.append((path or "$", canonical_json(inner)))
    return found


def _join(path: str, name: str) -> str:
    if not name or set(name) & set('.[]"'):
        return f"{path}[{json.dumps(name, ensure_ascii=False)}]"
    return f"{path}.{name}" if path else name


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
