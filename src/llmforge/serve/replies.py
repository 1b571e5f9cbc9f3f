"""From an engine's pieces to OpenAI's answers: one completion, or the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llmforge.data.example import Message
from llmforge.errors import ForgeError
from llmforge.infer.protocol import Piece, TokenLogprob, Usage
from llmforge.serve.errors import ApiError, as_api_error, surprise
from llmforge.serve.tool_stream import CallStream, Part

DONE = "[DONE]"
HALF_CHARACTER = "\ufffd"
LEAST_LOGPROB = -9999.0  # JSON has no -inf; OpenAI writes this for tokens that cannot come


@dataclass
class Answer:
    """What all chunks of one answer share.

    Attributes:
        tool_format: how the model writes calls, see CallStream.
        with_tools: whether the reply may hold calls; `only_first` keeps one of them.
    """

    model: str
    with_tools: bool = False
    tool_format: str | None = None
    only_first: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def calls(self, message: Message) -> list[dict[str, Any]]:
        """The calls of a whole reply, as the wire writes them."""
        return [
            {
                "id": call.id or call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.tool_calls[: 1 if self.only_first else None]
        ]


async def completion(answer: Answer, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    """The body of a plain answer."""
    replies: dict[int, list[Piece]] = {}
    async for piece in pieces:
        replies.setdefault(piece.index, []).append(piece)
    choices = [_choice(answer, index, replies[index]) for index in sorted(replies)]
    usages = [piece.usage for parts in replies.values() for piece in parts if piece.usage]
    return answer.envelope("chat.completion", choices, usage=usage_body(usages[-1]) if usages else None)


def _choice(answer: Answer, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    last = pieces[-1]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
    if last.message is not None:
        calls = answer.calls(last.message)
        message["content"] = last.message.content or (None if calls else "")
        message |= {"reasoning_content": last.message.reasoning} if last.message.reasoning else {}
        message |= {"tool_calls": calls} if calls else {}
    logprobs = None
    if last.logprobs is not None:
        logprobs = logprobs_body([entry for piece in pieces for entry in piece.logprobs or ()])
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": last.finish_reason}


async def chunks(answer: Answer, first: Piece, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
    """The events of a stream; `first` is the piece that was awaited to learn whether the request is refused."""
    replies: dict[int, ReplyStream] = {}
    async for event in told(first, pieces, lambda piece: _events(answer, piece, replies)):
        yield event


async def told(first: Any, more: AsyncGenerator[Any, None], events: Any) -> AsyncGenerator[str, None]:
    """`events` of each item and the end mark; a failure on the way is told, so that no client waits for the rest."""
    try:
        async with aclosing(more):
            for event in events(first):
                yield event
            async for item in more:
                for event in events(item):
                    yield event
    except ForgeError as error:
        yield json.dumps(as_api_error(error).body())
    except ApiError as error:
        yield json.dumps(error.body())
    except Exception as error:
        yield json.dumps(surprise(error).body())
    yield DONE


class ReplyStream:
    """One reply of a stream."""

    def __init__(self, answer: Answer):
        self.calls = CallStream(answer.tool_format, only_first=answer.only_first) if answer.with_tools else None
        self.text = ""

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        if self.calls is None:
            return [{"content": piece.text}] if piece.text else []
        self.text += piece.text
        parts = self.calls.push(piece.text)
        if piece.finish_reason is not None:
            parts += self.calls.finish(piece.message or Message("assistant", self.text))
        return [_delta(part) for part in parts]


def _delta(part: Part) -> dict[str, Any]:
    if part.kind == "content":
        return {"content": part.text}
    if part.kind == "reasoning":
        return {"reasoning_content": part.text}
    if part.kind == "name":
        opening = {"id": call_id(), "type": "function", "function": {"name": part.text, "arguments": ""}}
        return {"tool_calls": [{"index": part.index, **opening}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


def _events(answer: Answer, piece: Piece, replies: dict[int, ReplyStream]) -> list[str]:
    """The chunks of one piece."""
    deltas: list[dict[str, Any]] = []
    if piece.index not in replies:
        replies[piece.index] = ReplyStream(answer)
        deltas.append({"role": "assistant", "content": "", "refusal": None})
    deltas += replies[piece.index].deltas(piece)
    logprobs = logprobs_body(piece.logprobs) if piece.logprobs else None
    if logprobs and (not deltas or "role" in deltas[-1]):
        deltas.append({"content": ""})  # logprobs of tokens whose text is still held back
    usage: dict[str, Any] = {"usage": None} if answer.include_usage else {}
    lines = []
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


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


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
    return {"token": token, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(token.encode()) if whole else None}
