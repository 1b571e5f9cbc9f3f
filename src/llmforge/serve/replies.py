"""From an engine's pieces to OpenAI's answers: one completion, or chunks of a stream."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from llmforge.data.example import Message
from llmforge.errors import ForgeError
from llmforge.infer.protocol import Piece, TokenLogprob, Usage
from llmforge.serve.errors import ApiError, as_api_error, surprise

log = logging.getLogger(__name__)
DONE = "[DONE]"
HALF_CHARACTER = "\ufffd"


class Answer:
    """What all chunks of one answer share."""

    def __init__(self, model: str, *, with_tools: bool, include_usage: bool = False):
        self.id, self.created, self.model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model
        self.with_tools, self.include_usage = with_tools, include_usage

    def envelope(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}


async def completion(answer: Answer, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    """The body of a plain answer."""
    replies: dict[int, list[Piece]] = {}
    async for piece in pieces:
        replies.setdefault(piece.index, []).append(piece)
    choices = [_choice(index, replies[index]) for index in sorted(replies)]
    usages = [piece.usage for parts in replies.values() for piece in parts if piece.usage]
    return answer.envelope("chat.completion", choices, usage=usage_body(usages[-1]) if usages else None)


def _choice(index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    last = pieces[-1]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
    if last.message is not None:
        message |= read_reply(last.message)
    logprobs = None
    if last.logprobs is not None:
        logprobs = logprobs_body([entry for piece in pieces for entry in piece.logprobs or ()])
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": last.finish_reason}


async def chunks(answer: Answer, first: Piece, pieces: AsyncGenerator[Piece, None]) -> AsyncIterator[str]:
    """The data lines of a stream; `first` is the piece that was awaited to learn whether the request is refused.

    A failure after that ends the stream with an error line, so that no client waits for the rest.
    """
    opened: set[int] = set()
    try:
        async with aclosing(pieces):
            for chunk in _chunks(answer, first, opened):
                yield chunk
            async for piece in pieces:
                for chunk in _chunks(answer, piece, opened):
                    yield chunk
    except ForgeError as error:
        yield json.dumps(as_api_error(error).body())
    except ApiError as error:
        yield json.dumps(error.body())
    except Exception as error:
        yield json.dumps(surprise(error).body())
    yield DONE


def _chunks(answer: Answer, piece: Piece, opened: set[int]) -> list[str]:
    """The chunks of one piece. With tools the text waits for the end, where it is known what is a call."""
    deltas: list[dict[str, Any]] = []
    if piece.index not in opened:
        opened.add(piece.index)
        deltas.append({"role": "assistant", "content": "", "refusal": None})
    if piece.message is not None:
        read = read_reply(piece.message)
        calls = [{"index": i, **call} for i, call in enumerate(read.pop("tool_calls", []))]
        deltas += [{name: value} for name, value in read.items() if value]
        deltas += [{"tool_calls": calls}] if calls else []
    elif piece.text and not answer.with_tools:
        deltas.append({"content": piece.text})
    logprobs = logprobs_body(piece.logprobs) if piece.logprobs else None
    usage: dict[str, Any] = {"usage": None} if answer.include_usage else {}
    lines = []
    if logprobs and (not deltas or "role" in deltas[-1]):
        deltas.append({})  # logprobs of tokens whose text is still held back
    for i, delta in enumerate(deltas):
        choice = {"index": piece.index, "delta": delta, "finish_reason": None}
        choice["logprobs"] = logprobs if i == len(deltas) - 1 else None
        lines.append(answer.envelope("chat.completion.chunk", [choice], **usage))
    if piece.finish_reason is not None:
        end = {"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.finish_reason}
        lines.append(answer.envelope("chat.completion.chunk", [end], **usage))
    if piece.usage and answer.include_usage:
        lines.append(answer.envelope("chat.completion.chunk", [], usage=usage_body(piece.usage)))
    return [json.dumps(line, ensure_ascii=False) for line in lines]


def read_reply(message: Message) -> dict[str, Any]:
    """The wire's fields of a reply that was read for reasoning and tool calls."""
    fields: dict[str, Any] = {"content": message.content or (None if message.tool_calls else "")}
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id or f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    return fields


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprobs_body(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {**_token(entry.token, entry.logprob), "top_logprobs": [_token(token, p) for _, token, p in entry.top]}
            for entry in entries
        ],
        "refusal": None,
    }


def _token(token: str, logprob: float) -> dict[str, Any]:
    """`bytes` is null for a token that holds a part of a character only."""
    whole = HALF_CHARACTER not in token
    # JSON has no -inf; OpenAI writes -9999 for tokens that cannot come.
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode()) if whole else None}
