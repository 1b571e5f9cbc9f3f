"""Reasoning before an answer: where it stands, who writes it, and what happens to it in the history."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmforge.data.example import Message


@dataclass(frozen=True)
class Thinking:
    """The think block of a reasoning template.

    Attributes:
        opens, closes: what stands around the reasoning.
        asks: whether the prompt already holds `opens` (DeepSeek-R1), so that the model begins inside the block.
        always: whether a row without reasoning gets the empty block too when thinking is on (Qwen3 writes one).
    """

    opens: str = "<think>\n"
    closes: str = "\n</think>\n\n"
    asks: bool = False
    always: bool = True

    @property
    def empty(self) -> str:
        """The block of a reply that did not think, as the models' own templates write it."""
        return f"{self.opens}{self.closes}"


BLOCK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def split_reasoning(message: Message) -> Message:
    """The message with a leading <think> block moved from its content to `reasoning`."""
    if message.reasoning is not None:
        return replace(message, reasoning=message.reasoning.strip("\n"), content=message.content.lstrip("\n"))
    found = BLOCK.match(message.content)
    if not found:
        return message
    return replace(message, reasoning=found[1].strip() or None, content=message.content[found.end() :])
