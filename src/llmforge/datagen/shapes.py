"""Shapes a training row is written in, and the dataset_info.json entry that reads each of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.data.example import Message
from llmforge.errors import RecipeError

CHAT_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
HUMAN_NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


@dataclass(frozen=True)
class TrainingRow:
    """One row before it has a shape: a conversation, or a text for stage pt.

    `instruction` and `input` keep the two parts of the last user turn apart where the source has them.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    instruction: str | None = None
    input: str = ""
    text: str | None = None


def pair(instruction: str, input: str, output: str, system: str = "") -> TrainingRow:
    """A question of one or two parts and its reply."""
    asked = "\n".join(part for part in (instruction, input) if part)
    messages = [Message("system", system)] if system else []
    messages += [Message("user", asked), Message("assistant", output)]
    return TrainingRow(tuple(messages), instruction=instruction, input=input)


def render(row: TrainingRow, shape: str) -> dict[str, Any]:
    """The row as `shape` writes it.

    Raises:
        ValueError: the shape cannot hold it, in words.
    """
    if shape == "text":
        if row.text is None:
            raise ValueError("a conversation is no plain text; say `text:` how it is written")
        return {"text": row.text}
    if row.text is not None:
        raise ValueError(f"a plain text is no row of shape {shape}")
    if shape == "alpaca":
        return _alpaca(row)
    tools = {"tools": json.dumps(row.tools, ensure_ascii=False)} if row.tools else {}
    if shape == "messages":
        return {"messages": [_openai(m) for m in row.messages]} | ({"tools": list(row.tools)} if row.tools else {})
    if shape == "conversations":
        if any(m.tool_calls or m.role == "tool" for m in row.messages):
            raise ValueError("tool calls need the shape messages or sharegpt")
        return {"conversations": [{"role": m.role, "content": _content(m)} for m in row.messages]} | tools
    return {"conversations": [turn for m in row.messages for turn in _sharegpt(m)]} | tools


def entry_of(shape: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry that reads these rows, without `file_name`."""
    there = {key for row in rows for key in row}
    extra = {name: name for name in ("system", "tools", "history") if name in there}
    if shape == "text":
        return {"columns": {"prompt": "text"}}
    if shape == "alpaca":
        return {"columns": extra} if extra else {}
    if shape == "messages":
        return {"formatting": "openai", "columns": {"messages": "messages", **extra}}
    entry: dict[str, Any] = {"formatting": "sharegpt", "columns": {"messages": "conversations", **extra}}
    return entry | ({"tags": CHAT_TAGS} if shape == "conversations" else {})


def ordered(value: Any, order: str, schema: Mapping[str, Any] | None) -> Any:
    """A JSON answer with its keys in order: as given, sorted, or as the schema's `properties` name them."""
    if isinstance(value, list):
        items = (schema or {}).get("items")
        return [ordered(item, order, items if isinstance(items, Mapping) else None) for item in value]
    if not isinstance(value, Mapping):
        return value
    properties = (schema or {}).get("properties", {})
    keys = list(value)
    if order == "sorted":
        keys = sorted(keys)
    elif order == "schema":
        keys = [key for key in properties if key in value] + [key for key in keys if key not in properties]
    return {key: ordered(value[key], order, properties.get(key)) for key in keys}


def answer_schema(path: str, output: Any = None) -> dict[str, Any]:
    """The schema of what is learned: that of the whole answer, or of the part that `row.output` names (`out.symbol`).

    Raises:
        RecipeError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            schema = json.load(file)
    except (OSError, ValueError) as error:
        raise RecipeError(f"output_schema: {path} cannot be read ({error})") from None
    if isinstance(output, str) and re.fullmatch(r"out(\.\w+)+", output.strip()):
        for key in output.strip().split(".")[1:]:
            schema = schema.get("properties", {}).get(key, {}) if isinstance(schema, Mapping) else {}
    return dict(schema) if isinstance(schema, Mapping) else {}


def _alpaca(row: TrainingRow) -> dict[str, Any]:
    messages = list(row.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if row.tools or any(m.tool_calls or m.role == "tool" for m in messages):
        raise ValueError("tool calls need the shape messages or sharegpt")
    if len(messages) % 2 or [m.role for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise ValueError("turns of user and assistant do not alternate, as alpaca needs them")
    rounds = [[_content(m) for m in messages[i : i + 2]] for i in range(0, len(messages), 2)]
    question, reply = rounds.pop()
    shaped: dict[str, Any] = {"instruction": question, "input": "", "output": reply}
    if row.instruction is not None:
        shaped |= {"instruction": row.instruction, "input": row.input}
    return shaped | ({"system": system} if system else {}) | ({"history": rounds} if rounds else {})


def _content(message: Message) -> str:
    return f"<think>\n{message.reasoning}\n</think>\n\n{message.content}" if message.reasoning else message.content


def _openai(message: Message) -> dict[str, Any]:
    shaped: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        shaped["reasoning_content"] = message.reasoning
    if message.tool_calls:
        shaped["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)},
            }
            | ({"id": c.id} if c.id else {})
            for c in message.tool_calls
        ]
    return shaped | ({} if message.train is None else {"train": message.train})


def _sharegpt(message: Message) -> list[dict[str, Any]]:
    turns = []
    if message.content or not message.tool_calls:
        turns.append({"from": HUMAN_NAMES[message.role], "value": _content(message)})
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        value = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        turns.append({"from": "function_call", "value": value})
    return turns
