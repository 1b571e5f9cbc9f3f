"""What a teacher wrote -> a checked value, or the cause why not. Nothing is filled in that it did not write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.errors import require

FENCED = re.compile(r"^```[\w-]*\s*\n(.*)\n```$", re.DOTALL)
THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
SHOWN = 200


class BadAnswer(Exception):
    """An answer that is not accepted: `cause` is the word it is counted under, the message says what was wrong."""

    def __init__(self, cause: str, detail: str):
        super().__init__(detail)
        self.cause, self.detail = cause, detail


@dataclass(frozen=True)
class Parsed:
    """A JSON value out of an answer; `repaired` when its syntax had to be mended."""

    value: Any
    repaired: bool = False


def read_text(text: str, finish_reason: str) -> str:
    """The answer as plain text.

    Raises:
        BadAnswer: nothing was written, or it was cut.
    """
    bare = THOUGHT.sub("", text).strip()
    if not bare:
        raise BadAnswer("empty", "the answer is empty")
    if finish_reason == "length":
        raise BadAnswer("cut", "the answer reached max_tokens and was cut")
    return bare


def read_json(text: str, finish_reason: str) -> Parsed:
    """The JSON value of an answer, out of a code fence where there is one.

    Raises:
        BadAnswer: empty, cut, or no JSON that could be mended without inventing something.
    """
    bare = read_text(text, finish_reason)
    if fenced := FENCED.match(bare):
        bare = fenced[1].strip()
    try:
        return Parsed(strict_json(bare))
    except json.JSONDecodeError as error:
        wrong = str(error)
    except ValueError as error:  # well formed, and yet not one value: a key that stands twice, NaN
        raise BadAnswer("json", f"the answer is not JSON: {error}") from None
    mended = _mended(bare)
    if mended is None:
        raise BadAnswer("json", f"the answer is not JSON: {wrong}")
    return Parsed(mended, repaired=True)


def cut_list(text: str, key: str) -> list[Any]:
    """The whole items of the list `key` in an answer that was cut; the last one, which may be half, is left out.

    Raises:
        BadAnswer: not one item is whole.
    """
    json_repair = require("json_repair", "data", "reading answers that were cut")
    value = json_repair.loads(text)
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list) or len(items) < 2:
        raise BadAnswer("cut", "the answer reached max_tokens before one item was whole")
    return items[:-1]


def strict_json(text: str) -> Any:
    """JSON as RFC 8259 has it, without NaN and without a key that stands twice.

    Raises:
        ValueError: it is something else.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) != len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise ValueError(f"the key {twice!r} stands twice")
        return built

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(text, object_pairs_hook=mapping, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _mended(text: str) -> Any:
    """The value of almost-JSON (a trailing comma, single quotes, text around it), or None.

    Only an answer that comes to its own closing bracket is mended, and only if every key, text and number of the
    result stands in the answer: half an answer stays half.
    """
    json_repair = require("json_repair", "data", "mending almost-JSON answers")
    start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    end = max(text.rfind("}"), text.rfind("]"))
    if start < 0 or end < start:
        return None
    inside = text[start : end + 1]
    if inside.count("{") != inside.count("}") or inside.count("[") != inside.count("]"):
        return None
    value = json_repair.loads(inside)
    if not isinstance(value, dict | list) or not value:
        return None
    known = inside.replace("\\", "")
    return value if all(leaf in known for leaf in _leaves(value)) else None


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key).replace("\\", "")
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield from (line.replace("\\", "") for line in value.splitlines())
    elif not isinstance(value, bool) and value is not None:
        yield json.dumps(value)


def check_schema(value: Any, schema: Mapping[str, Any]) -> None:
    """Hold a value against a JSON Schema.

    Raises:
        BadAnswer: cause "schema:PATH" of the first place that does not fit, with what was expected.
    """
    from jsonschema import Draft202012Validator, FormatChecker
    from referencing import Registry

    # An empty registry: a schema can never make this process fetch a URL.
    validator = Draft202012Validator(schema, format_checker=FormatChecker(), registry=Registry())
    errors = sorted(validator.iter_errors(value), key=lambda error: [str(part) for part in error.absolute_path])
    if not errors:
        return
    first = errors[0]
    names = [str(part) for part in first.absolute_path if isinstance(part, str)]
    where = ".".join(map(str, first.absolute_path)) or "the answer"
    message = first.message if len(first.message) <= SHOWN else f"{first.message[:SHOWN]}..."
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise BadAnswer(f"schema:{'.'.join(names) or '.'}", f"{where}: {message}{more}")
