"""What a reward function gets to see of a reply. No torch, so that plugins are quick to write and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmforge.data.example import Message, RowRef


@dataclass(frozen=True)
class Sample:
    """One drawn reply.

    Attributes:
        messages: the turns before the reply.
        reply: its text, without control tokens.
        label: the reply that the data set has for this prompt, "" where it has none.
        source: file and row of the prompt.
        ended: the reply came to its end by itself; False when it was cut at max_new_tokens.
        num_tokens: tokens of the reply, its end token included.
        prompt_ids, reply_ids: the same as ids.
    """

    messages: tuple[Message, ...]
    reply: str
    label: str
    source: RowRef
    ended: bool
    num_tokens: int
    prompt_ids: tuple[int, ...] = ()
    reply_ids: tuple[int, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
