"""The replies of preference rows, whatever form the prompt has: a chosen and a rejected one, or a list with scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llmforge.data.example import Example, Message
from llmforge.data.formats.row import Rejected, Row, RowContext, parsed, type_name
from llmforge.data.formats.turns import in_order

ReadReply = Callable[[Any, str, RowContext], Message]  # value, its name for messages


def read_ranking(
    row: Row, context: RowContext, messages: Sequence[Message], tools: tuple[dict[str, Any], ...], reply: ReadReply
) -> Example:
    """The row as a prompt and its replies.

    Raises:
        Rejected: a reply is missing, empty, or the same as another of a different rank; scores that cannot be compared.
    """
    prompt = in_order(messages, context)
    if context.entry.columns.replies is None:
        chosen, rejected = (reply(context.value(row, n, required=True), n, context) for n in ("chosen", "rejected"))
        if chosen == rejected:
            raise Rejected("chosen and rejected are the same")
        return Example(prompt, context.source, tools, chosen=chosen, rejected=rejected)
    ranked = _scored(row, context, reply)
    ordered = sorted(ranked, key=lambda item: item[1])
    return Example(prompt, context.source, tools, chosen=ordered[-1][0], rejected=ordered[0][0], replies=tuple(ranked))


def _scored(row: Row, context: RowContext, reply: ReadReply) -> list[tuple[Message, float]]:
    """Replies and scores in their order; equal replies of equal score stand once."""
    replies = parsed(context.value(row, "replies", required=True), "the replies")
    scores = parsed(context.value(row, "scores", required=True), "the scores")
    for value, what in ((replies, "replies"), (scores, "scores")):
        if not isinstance(value, list):
            raise Rejected(f"{what} is {type_name(value)}, not a list")
    if len(replies) != len(scores):
        raise Rejected(f"{len(replies)} replies have {len(scores)} scores")
    found: list[tuple[Message, float]] = []
    for number, (value, score) in enumerate(zip(replies, scores, strict=True), start=1):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise Rejected(f"score {number} is {score if isinstance(score, float) else type_name(score)}, not a number")
        message = reply(value, f"reply {number}", context)
        before = next((other for known, other in found if known == message), None)
        if before is None:
            found.append((message, float(score)))
        elif before != score:
            raise Rejected(f"reply {number} is the same as another of score {before:g}, and its own is {score:g}")
    if len({score for _, score in found}) < 2:
        raise Rejected("no reply has a higher score than another")
    return found
