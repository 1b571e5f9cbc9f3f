"""From an engine's pieces to the answers of /v1/completions."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from llmforge.infer.protocol import Piece, TokenLogprob, Usage
from llmforge.serve.replies import LEAST_LOGPROB, Answer, told, usage_body

Numbered = tuple[int, Piece]  # number of the prompt, piece of a reply to it


class TextAnswer(Answer):
    """What all chunks of one answer share.

    Args:
        num_replies: replies to each prompt.
        echoes: for each prompt the text that its replies begin with.
    """

    def __init__(self, model: str, num_replies: int, echoes: Sequence[str], *, include_usage: bool = False):
        super().__init__(model, include_usage=include_usage, id=f"cmpl-{uuid.uuid4().hex}")
        self.num_replies, self.echoes = num_replies, echoes
        self.offsets: dict[int, int] = {}  # characters of each reply so far
        self.usage = Usage(0, 0)

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """A piece as a choice."""
        index = number * self.num_replies + piece.index
        text = piece.text
        if index not in self.offsets:
            self.offsets[index] = 0
            text = self.echoes[number] + text
        logprobs = None
        if piece.logprobs is not None:
            logprobs = logprobs_body(piece.logprobs, self.offsets[index])
        self.offsets[index] += len(text)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def count(self, usage: Usage) -> None:
        """Add what one prompt and its replies cost."""
        now = self.usage
        self.usage = Usage(
            now.prompt_tokens + usage.prompt_tokens,
            now.completion_tokens + usage.completion_tokens,
            now.cached_tokens + usage.cached_tokens,
        )


async def text_completion(answer: TextAnswer, pieces: AsyncIterator[Numbered]) -> dict[str, Any]:
    """The body of a plain answer."""
    choices: dict[int, dict[str, Any]] = {}
    async for number, piece in pieces:
        part = answer.choice(number, piece)
        whole = choices.setdefault(part["index"], part)
        if whole is not part:
            whole["text"] += part["text"]
            whole["finish_reason"] = part["finish_reason"]
            for name, values in (part["logprobs"] or {}).items():
                whole["logprobs"][name] += values
        if piece.usage:
            answer.count(piece.usage)
    return answer.envelope(
        "text_completion", [choices[index] for index in sorted(choices)], usage=usage_body(answer.usage)
    )


async def text_chunks(
    answer: TextAnswer, first: Numbered, pieces: AsyncGenerator[Numbered, None], num_prompts: int
) -> AsyncGenerator[str, None]:
    """The events of a stream."""
    remaining = num_prompts

    def events(numbered: Numbered) -> list[str]:
        nonlocal remaining
        number, piece = numbered
        more: dict[str, Any] = {"usage": None} if answer.include_usage else {}
        lines = [answer.envelope("text_completion", [answer.choice(number, piece)], **more)]
        if piece.usage:
            answer.count(piece.usage)
            remaining -= 1
            if not remaining and answer.include_usage:
                lines.append(answer.envelope("text_completion", [], usage=usage_body(answer.usage)))
        return [json.dumps(line, ensure_ascii=False) for line in lines]

    async for event in told(first, pieces, events):
        yield event


def logprobs_body(entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Logprobs as lists, in the older form of this address; offsets are characters of the reply."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in entries],
        "top_logprobs": [{token: max(p, LEAST_LOGPROB) for _, token, p in entry.top} for entry in entries],
        "text_offset": offsets,
    }
