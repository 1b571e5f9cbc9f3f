"""ShareGPT rows: a list of messages whose keys and roles an entry may rename by tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from llmforge.data.entry import DatasetEntry
from llmforge.data.example import Example, Message, Role
from llmforge.data.formats.alpaca import read_label
from llmforge.data.formats.ranking import read_ranking
from llmforge.data.formats.row import (
    RANKING_STAGES,
    Rejected,
    Row,
    RowContext,
    parsed,
    read_flag,
    read_tool_call,
    read_tools,
    type_name,
)
from llmforge.data.formats.turns import in_order, is_empty

TURN_TAGS: dict[str, Role] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}


def read(row: Row, context: RowContext) -> Example:
    """The row's conversation.

    Raises:
        Rejected: a missing column, an unknown role, turns out of order, an empty turn, a call that is not JSON.
    """
    return read_conversation(row, context, _message)


def read_conversation(row: Row, context: RowContext, read_message: Any) -> Example:
    """What sharegpt and openai rows share; `read_message(item, context) -> Message` knows the form of one message."""
    context.refuse_media(row)
    items = parsed(context.value(row, "messages", required=True), "the conversation")
    if not isinstance(items, list):
        raise Rejected(f"the conversation is {type_name(items)}, not a list")
    messages = [read_message(item, context) for item in items]
    system = context.text(context.value(row, "system"), "system")
    if system and (not messages or messages[0].role != "system"):
        messages.insert(0, Message("system", system))
    tools = read_tools(context.value(row, "tools"))
    if context.stage in RANKING_STAGES:
        return read_ranking(row, context, messages, tools, partial(_reply, read_message))
    label = read_label(context.value(row, "kto_tag", required=True)) if context.stage == "kto" else None
    return Example(in_order(messages, context), context.source, tools, label=label)


def _reply(read_message: Any, value: Any, name: str, context: RowContext) -> Message:
    if isinstance(value, str) and name.startswith("reply"):
        value = Message("assistant", context.text(value, name))  # a list of scored replies may hold bare texts
        if is_empty(value):
            raise Rejected(f"{name} is empty")
        return value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Mapping):
        raise Rejected(f"{name} is {type_name(value)}, not one message")
    message = read_message(value, context)
    if message.role != "assistant":
        raise Rejected(f"{name} is not an assistant turn")
    if is_empty(message):
        raise Rejected(f"{name} is empty")
    return message


def _message(item: Any, context: RowContext) -> Message:
    tags = context.entry.tags
    if not isinstance(item, Mapping):
        raise Rejected(f"a message is {type_name(item)}, not an object")
    role_key, content_key = tags.role_tag or "from", tags.content_tag or "value"
    for key in (role_key, content_key):
        if key not in item:
            raise Rejected(f"a message has no {key!r}")
    tag = _tag_of(item[role_key], context.entry)
    if tag not in context.entry.named:
        context.defaults.add(tag)
    if item[content_key] is None:
        raise Rejected(f"the {content_key} of a message is null")
    if tag == "function_tag":
        calls = parsed(item[content_key], "a function call")
        calls = tuple(read_tool_call(call) for call in (calls if isinstance(calls, list) else [calls]))
        return Message("assistant", "", calls, train=read_flag(item))
    return Message(
        TURN_TAGS[tag], context.text(item[content_key], f"the {content_key} of a message"), train=read_flag(item)
    )


def _tag_of(role: Any, entry: DatasetEntry) -> str:
    for tag in TURN_TAGS:
        if getattr(entry.tags, tag) == role and role is not None:
            return tag
    known = ", ".join(name for tag in TURN_TAGS if (name := getattr(entry.tags, tag)))
    raise Rejected(f"unknown role {json.dumps(role, ensure_ascii=False, default=str)[:40]}; known: {known}")
