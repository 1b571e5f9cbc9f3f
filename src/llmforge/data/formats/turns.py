"""The order of turns in a conversation: checked, mended where that changes no meaning, or refused with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmforge.data.example import Message
from llmforge.data.formats.row import PROMPT_STAGES, Rejected, RowContext

FOLLOWS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
NOUNS = {"system": "a system text", "user": "a user turn", "assistant": "an assistant turn", "tool": "a tool result"}


def in_order(messages: Sequence[Message], context: RowContext) -> tuple[Message, ...]:
    """Messages with turns of the same role joined, ending as the stage needs it.

    Conversations run system? (user (assistant tool+)* assistant)*. For sft and kto they end with the assistant's reply,
    for pairs before it; for prompts both is fine.

    Raises:
        Rejected: a role out of order, an empty turn, a missing or superfluous reply.
    """
    turns: list[Message] = []
    for message in messages:
        previous = turns[-1] if turns else None
        if previous and previous.role == message.role and message.role != "tool":
            turns[-1] = _joined(previous, message)
            context.fix(f"two {message.role} turns in a row joined by a line break")
            continue
        role = previous.role if previous else None
        if message.role not in FOLLOWS[role]:
            expected = " or ".join(NOUNS[r] for r in FOLLOWS[role])
            place = f"after {NOUNS[role]}" if role else "at the start"
            raise Rejected(f"{NOUNS[message.role]} {place}, expected {expected}")
        turns.append(message)
    if context.stage in PROMPT_STAGES and turns and turns[-1].role == "assistant" and is_empty(turns[-1]):
        turns.pop()
    for message in turns:
        if message.role in ("user", "assistant") and is_empty(message):
            last = message is turns[-1] and message.role == "assistant"
            raise Rejected("the reply is empty" if last else f"{NOUNS[message.role]} is empty")
    _check_end(turns, context)
    return tuple(turns)


def is_empty(message: Message) -> bool:
    """No text, no call and no reasoning; blanks are no text."""
    return not (message.content.strip() or message.tool_calls or message.reasoning)


def _check_end(turns: list[Message], context: RowContext) -> None:
    if not any(message.role == "user" for message in turns):
        raise Rejected("no user turn")
    ends_with_reply = turns[-1].role == "assistant"
    if context.needs_reply and not ends_with_reply:
        raise Rejected(f"ends with {NOUNS[turns[-1].role]}, there is no reply to learn")
    if context.stage not in PROMPT_STAGES and not context.needs_reply and ends_with_reply:
        raise Rejected("ends with an assistant turn before chosen and rejected")


def _joined(first: Message, second: Message) -> Message:
    """Two turns of one role as one.

    Raises:
        Rejected: joining would lose the order of calls and text, or the wish to learn only one of them.
    """
    if first.tool_calls:
        raise Rejected("an assistant turn after a tool call without its result")
    if first.train != second.train:
        raise Rejected(f"two {first.role} turns in a row of which only one is to be learned")
    if second.reasoning and (first.content or first.reasoning):
        raise Rejected("two assistant turns in a row, the second with reasoning of its own")
    content = "\n".join(part for part in (first.content, second.content) if part)
    reasoning = first.reasoning or second.reasoning
    return replace(first, content=content, tool_calls=second.tool_calls, reasoning=reasoning)
