"""OpenAI-style rows: messages with role and content, tool calls, content parts, reasoning and flags what to learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmforge.data.entry import DatasetEntry
from llmforge.data.example import Example, Message, Role, ToolCall
from llmforge.data.formats.row import Rejected, Row, RowContext, read_flag, read_tool_call, type_name
from llmforge.data.formats.sharegpt import TURN_TAGS, read_conversation

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # its name before tools had one
    "observation": "tool",  # ChatGLM3's name for it
}


def read(row: Row, context: RowContext) -> Example:
    """The row's conversation.

    Raises:
        Rejected: a missing column, an unknown role or content part, turns out of order, an empty turn.
    """
    return read_conversation(row, context, read_message)


def read_message(item: Any, context: RowContext) -> Message:
    """One message; null content is fine beside tool calls."""
    if not isinstance(item, Mapping):
        raise Rejected(f"a message is {type_name(item)}, not an object")
    tags, named = context.entry.tags, context.entry.named
    name = item.get(tags.role_tag if "role_tag" in named else "role")
    role = _role(name, context.entry)
    given = item.get("tool_calls") or []
    if not isinstance(given, list):
        raise Rejected(f"tool_calls is {type_name(given)}, not a list")
    calls = [read_tool_call(call) for call in given]
    if item.get("function_call"):
        calls.append(read_tool_call(item["function_call"]))
    given = item.get(tags.content_tag if "content_tag" in named else "content")
    content, reasoning, more_calls = _content(given, context)
    calls += more_calls
    if calls and role != "assistant":
        raise Rejected(f"a {name} message with tool calls")
    if content is None and not calls:
        raise Rejected("the content of a message is null")
    for key in ("reasoning_content", "reasoning"):
        reasoning = context.text(item.get(key), key) or reasoning
    return Message(role, content or "", tuple(calls), reasoning or None, read_flag(item))


def _role(name: Any, entry: DatasetEntry) -> Role:
    """The role by OpenAI's name, or by one that the entry's tags give it."""
    if isinstance(name, str):
        for tag, role in TURN_TAGS.items():
            if tag in entry.named and getattr(entry.tags, tag) == name:
                return role
        if name in ROLES:
            return ROLES[name]
    shown = json.dumps(name, ensure_ascii=False, default=str)[:40]
    raise Rejected(f"unknown role {shown}; known: {', '.join(ROLES)}")


def _content(value: Any, context: RowContext) -> tuple[str | None, str | None, list[ToolCall]]:
    """(text, reasoning, calls) of a content field: text, null, or a list of parts."""
    if value is None:
        return None, None, []
    if not isinstance(value, list):
        return context.text(value, "the content of a message"), None, []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for part in value:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "output_text", "input_text"):
            texts.append(context.text(part.get("text", part.get("value")), "a text part"))
        elif kind in ("reasoning", "thinking"):
            thoughts.append(context.text(part.get(kind, part.get("text", part.get("value"))), "a reasoning part"))
        elif kind == "tool_call":
            calls.append(read_tool_call(part.get("value", part)))
        else:
            shown = json.dumps(kind, ensure_ascii=False, default=str)[:40]
            raise Rejected(f"a content part of type {shown} is not supported")
    return "".join(texts), "".join(thoughts) or None, calls
