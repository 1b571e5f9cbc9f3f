"""What every data format needs to read a row: the mapped fields, text out of values, tools, and the word `Rejected`.

A format is one function `read(row, context) -> Example` in the table FORMATS. It raises `Rejected` with a reason for a
row that cannot be used, calls `context.fix` for what it changed, and adds no text of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmforge.data.entry import COLUMN_NAMES, MEDIA, TAG_NAMES, DatasetEntry
from llmforge.data.example import RowRef, ToolCall

RANKING_STAGES = ("rm", "dpo")
PROMPT_STAGES = ("prompt", "ppo", "grpo")  # these answer rows, whose own reply may be missing
Row = Mapping[str, Any]


class Rejected(Exception):
    """The row cannot be used; the text is the reason."""


class MissingColumn(Rejected):
    """The row lacks a column that its format needs."""

    def __init__(self, column: str):
        super().__init__(f"no column {column!r}")
        self.column = column


@dataclass
class RowContext:
    """One row's surroundings.

    `stage` is a training stage, or "prompt" for rows to be answered, whose reply may be missing. `fixes` collects what
    was changed; `defaults` the columns and tags that the entry left to their defaults and that held something.
    """

    entry: DatasetEntry
    stage: str
    source: RowRef
    fixes: list[str] = field(default_factory=list)
    defaults: set[str] = field(default_factory=set)

    @property
    def needs_reply(self) -> bool:
        return self.stage not in (*PROMPT_STAGES, *RANKING_STAGES)

    def fix(self, what: str) -> None:
        self.fixes.append(what)

    def value(self, row: Row, name: str, *, required: bool = False) -> Any:
        """The value in the column that the entry maps `name` to; None when there is none.

        Raises:
            MissingColumn: the row lacks a required column.
        """
        column = getattr(self.entry.columns, name)
        if column is None or column not in row:
            if required:
                raise MissingColumn(column or name)
            return None
        value = row[column]
        if name not in self.entry.named and value not in (None, "", [], {}):
            self.defaults.add(name)
        return value

    def text(self, value: Any, what: str) -> str:
        """`value` as text: an object or list becomes JSON in its own key order, without ASCII escapes; None is "".

        Raises:
            Rejected: a number, a truth value, or text that is not valid Unicode.
        """
        if value is None:
            return ""
        if isinstance(value, (dict, list)):
            self.fix(f"{what} is {'an object' if isinstance(value, dict) else 'a list'}; written as JSON text")
            value = json_text(value, what)
        if not isinstance(value, str):
            raise Rejected(f"{what} is {type_name(value)}, not text")
        check_unicode(value, what)
        return value

    def refuse_media(self, row: Row) -> None:
        """Raises Rejected for a row with pictures, films or sound."""
        for kind in MEDIA:
            column = getattr(self.entry.columns, kind)
            if column and row.get(column):
                raise Rejected(f"{kind} are not supported")

    def differs_from_llamafactory(self) -> list[str]:
        """Notes on defaults that held something although the entry names other columns or tags of their group."""
        notes = []
        for group, names, values in (
            ("columns", COLUMN_NAMES, self.entry.columns),
            ("tags", TAG_NAMES, self.entry.tags),
        ):
            used = sorted(self.defaults & set(names))
            if used and self.entry.named & set(names):
                listed = ", ".join(f"{name} from {getattr(values, name)!r}" for name in used)
                notes.append(
                    f"dataset {self.entry.name!r}: {group} does not name {listed}, which the rows hold, so it is read "
                    f"by default; LLaMA-Factory would leave it out, as null does here"
                )
        return notes


def type_name(value: Any) -> str:
    """The JSON word for a value's type, with an article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


def check_unicode(text: str, what: str) -> None:
    """Raises Rejected for half of a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Rejected(f"{what} holds half of a surrogate pair") from None


def json_text(value: Any, what: str) -> str:
    """JSON in the value's own key order.

    Raises:
        Rejected: NaN, or a value that JSON cannot spell.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Rejected(f"{what} cannot be written as JSON ({error})") from None


def parsed(value: Any, what: str) -> Any:
    """A value that files may also hold as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Rejected(f"{what} is not valid JSON") from None


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Function schemas in OpenAI's form out of a list, one schema, or JSON text of either; "" and null are none.

    A bare {"name": ...} is put into its {"type": "function", "function": ...} frame.

    Raises:
        Rejected: not JSON, or a schema without a name.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    value = parsed(value, "tools")
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        tool = parsed(tool, "a tool")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Rejected("a tool has no name")
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    check_unicode(json_text(tools, "tools"), "tools")
    return tuple(tools)


def read_tool_call(value: Any) -> ToolCall:
    """One call {"name", "arguments"}, bare or in OpenAI's frame {"id", "function": {...}}; arguments may be JSON text.

    Raises:
        Rejected: no name, or arguments that are no object.
    """
    call = parsed(value, "a tool call")
    identity = call.get("id") if isinstance(call, dict) else None
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Rejected("a tool call has no name")
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else parsed(arguments, "a tool call's arguments")
    if not isinstance(arguments, dict):
        raise Rejected(f"a tool call's arguments are {type_name(arguments)}, not an object")
    check_unicode(function["name"] + json_text(arguments, "a tool call's arguments"), "a tool call")
    return ToolCall(function["name"], arguments, identity if isinstance(identity, str) else None)


def read_flag(message: Mapping[str, Any]) -> bool | None:
    """Whether a message is learned, from its key `train`, `loss` or `weight` (0 or 1); None when it says nothing."""
    for key in ("train", "loss", "weight"):
        if message.get(key) is not None:
            if message[key] in (0, 1):
                return bool(message[key])
            raise Rejected(f"{key}: expected true, false, 0 or 1")
    return None
