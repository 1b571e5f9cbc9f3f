"""Prompts as ids outside generation: raw texts for base models, conversations for those who ask how long they are."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from llmforge.errors import RecipeError
from llmforge.infer.protocol import Conversation, RequestError, TokenIds

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer


def raw_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a raw prompt, after bos where the tokenizer adds one by itself."""
    starts = tokenizer.config.get("add_bos_token", False) and tokenizer.bos_id is not None
    opening = [tokenizer.bos_id] if starts and tokenizer.bos_id is not None else []
    return opening + tokenizer.ids(text, after="control" if opening else "nothing")


def conversation_ids(template: Template, tokenizer: Tokenizer, prompt: Conversation) -> list[int]:
    """Ids of the prompt that a reply to the conversation is generated from.

    Raises:
        RequestError: the messages do not fit the template.
    """
    try:
        encoded = template.encode(tokenizer, prompt.messages, prompt.tools, add_generation_prompt=True)
    except RecipeError as error:
        raise RequestError(str(error), param="messages", code="invalid_messages") from None
    return list(encoded.input_ids)


def judged_ids(template: Template, tokenizer: Tokenizer, prompt: Conversation | TokenIds) -> list[int]:
    """Ids of a whole conversation with its last reply, as a reward model learned to read it.

    Raises:
        RequestError: there is no reply at its end, or the messages do not fit the template.
    """
    if isinstance(prompt, TokenIds):
        return list(prompt.ids)
    if not prompt.messages or prompt.messages[-1].role != "assistant":
        raise RequestError("messages: the last one must be the assistant's, whose reply is scored", param="messages")
    try:
        return list(template.encode(tokenizer, prompt.messages, prompt.tools).input_ids)
    except RecipeError as error:
        raise RequestError(str(error), param="messages", code="invalid_messages") from None


@lru_cache(maxsize=8)
def longest_token(tokenizer: Tokenizer) -> int:
    """Bytes of the longest token: a text of n tokens has at most n times as many."""
    return max((len(tokenizer.token(id).encode()) for id in range(len(tokenizer))), default=1)


def streamable_tools(template: Template) -> str | None:
    """The tool format, unless replies begin inside a think block, where nothing is known before the block ends."""
    begins_thinking = template.thinking is not None and template.thinking.asks and template.enable_thinking
    return None if begins_thinking else template.tool_syntax
