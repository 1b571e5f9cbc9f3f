"""Alpaca rows: instruction, input and output in columns, with optional system text, history and pairs."""

from __future__ import annotations

from typing import Any

from llmforge.data.example import Example, Message
from llmforge.data.formats.ranking import read_ranking
from llmforge.data.formats.row import RANKING_STAGES, Rejected, Row, RowContext, read_tools
from llmforge.data.formats.turns import in_order


def read(row: Row, context: RowContext) -> Example:
    """One question (instruction, a line break, input) and its reply; at stage pt the question alone is the text.

    Raises:
        Rejected: a missing column, an empty question or reply, a value that is no text.
    """
    context.refuse_media(row)
    prompt = _prompt(row, context)
    if context.stage == "pt":
        if not prompt.strip():
            raise Rejected("the text is empty")
        return Example((), context.source, text=prompt)
    messages = []
    if system := context.text(context.value(row, "system"), "system"):
        messages.append(Message("system", system))
    messages += _history(context.value(row, "history"), context)
    messages.append(Message("user", prompt))
    tools = read_tools(context.value(row, "tools"))
    if context.stage in RANKING_STAGES:
        return read_ranking(row, context, messages, tools, _reply)
    response = context.value(row, "response", required=context.needs_reply)
    if response is not None or context.needs_reply:
        messages.append(Message("assistant", context.text(response, "output")))
    label = read_label(context.value(row, "kto_tag", required=True)) if context.stage == "kto" else None
    return Example(in_order(messages, context), context.source, tools, label=label)


def read_label(value: Any) -> bool:
    """KTO's verdict: a truth value, or its word where a file can only hold text."""
    words = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise Rejected("the kto label is neither true nor false")


def _prompt(row: Row, context: RowContext) -> str:
    parts = [context.value(row, "prompt", required=True), context.value(row, "query")]
    return "\n".join(
        part for part in (context.text(p, n) for p, n in zip(parts, ("prompt", "query"), strict=True)) if part
    )


def _reply(value: Any, name: str, context: RowContext) -> Message:
    text = context.text(value, name)
    if not text.strip():
        raise Rejected(f"{name} is empty")
    return Message("assistant", text)


def _history(value: Any, context: RowContext) -> list[Message]:
    """Earlier rounds as [question, reply] pairs."""
    if value is None:
        return []
    messages = []
    for pair in value if isinstance(value, list) else [None]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Rejected("history is not a list of [question, reply] pairs")
        messages.append(Message("user", context.text(pair[0], "a question in history")))
        messages.append(Message("assistant", context.text(pair[1], "a reply in history")))
    return messages
