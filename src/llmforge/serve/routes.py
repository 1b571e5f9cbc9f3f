"""The addresses that generate."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from llmforge.infer.protocol import GenerateRequest, TokenIds
from llmforge.serve.body import read_body
from llmforge.serve.errors import ApiError
from llmforge.serve.replies import Answer, chunks, completion
from llmforge.serve.serving import CLIENT_LEFT, Serving, get_serving, merged, record_of, unless_client_leaves
from llmforge.serve.stream import EventStream
from llmforge.serve.text_replies import TextAnswer, text_chunks, text_completion
from llmforge.serve.translate import check_engine, refuse, to_engine, to_sampling
from llmforge.serve.wire_chat import ChatRequest, prompt_bytes
from llmforge.serve.wire_text import REFUSED_OF_COMPLETIONS, CompletionRequest

NOBODY = Response(status_code=CLIENT_LEFT)
DEFAULT_MAX_RUNNING = 32  # prompts of one request that are under way, where the engine does not say

router = APIRouter()
ServingNow = Annotated[Serving, Depends(get_serving)]


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, serving: ServingNow) -> Response:
    """A chat completion, whole or as a stream of server-sent events."""
    body = await read_body(request, ChatRequest)
    card = serving.card(body.model, "generate")
    note(request, serving, card.id, bool(body.stream), body.messages)
    serving.check_bytes(card, prompt_bytes(body.messages, body.tools), "messages")
    settings = serving.settings
    can = serving.engine.capabilities()
    asked = to_engine(body, card.id, settings.defaults, can, strict_400=settings.strict_400)
    answer = Answer(
        body.model,
        with_tools=bool(getattr(asked.prompt, "tools", ())),
        tool_format=card.tool_format,
        only_first=body.parallel_tool_calls is False,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    pieces = serving.generate(request, asked)
    if not body.stream:
        return await plain(request, pieces, completion(answer, pieces))
    # The first piece is awaited before the status line goes out, so that a refusal keeps its own status.
    first = await unless_client_leaves(request, anext(pieces))
    if first is None:
        await pieces.aclose()
        return NOBODY
    return EventStream(chunks(answer, first, pieces))


@router.post("/v1/completions")
async def completions(request: Request, serving: ServingNow) -> Response:
    """Raw prompts, continued: as texts or as token ids, one or many."""
    body = await read_body(request, CompletionRequest)
    card = serving.card(body.model, "generate")
    note(request, serving, card.id, bool(body.stream), body.prompt)
    refuse(body, REFUSED_OF_COMPLETIONS)
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo: logprobs of a prompt are not supported", param="echo", code="unsupported_parameter")
    can = serving.engine.capabilities()
    sampling = to_sampling(body, serving.settings.defaults, can)
    if body.logprobs is not None:
        sampling = dataclasses.replace(sampling, logprobs=body.logprobs)
        check_engine(sampling, serving.settings.defaults, can)
    prompts = body.prompts()
    ids = [await prompt_ids(serving, card.id, prompt) for prompt in prompts]
    echoes = [await echo_of(serving, card.id, prompt) if body.echo else "" for prompt in prompts]
    asked = [GenerateRequest(card.id, TokenIds(tuple(some)), sampling, streams=bool(body.stream)) for some in ids]
    streams = [serving.generate(request, one) for one in asked]
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    answer = TextAnswer(body.model, sampling.n, echoes, include_usage=include_usage)
    pieces = merged(streams, can.max_running or DEFAULT_MAX_RUNNING)
    if not body.stream:
        return await plain(request, pieces, text_completion(answer, pieces))
    first = await unless_client_leaves(request, anext(pieces))
    if first is None:
        await pieces.aclose()
        return NOBODY
    return EventStream(text_chunks(answer, first, pieces, len(prompts)))


async def plain(request: Request, pieces: AsyncGenerator[Any, None], body: Any) -> Response:
    """A whole answer, unless the client leaves before."""
    async with aclosing(pieces):
        whole = await unless_client_leaves(request, body)
    return NOBODY if whole is None else JSONResponse(whole)


async def prompt_ids(serving: Serving, model: str, prompt: str | list[int]) -> list[int]:
    """The ids of a raw prompt."""
    if not isinstance(prompt, str):
        return prompt
    if not serving.engine.capabilities().tokenize:
        raise ApiError(400, "prompt: this engine takes conversations; use /v1/chat/completions", param="prompt")
    serving.check_bytes(serving.card(model, "generate"), len(prompt.encode()), "prompt")
    return await serving.engine.tokenize(model, prompt)


async def echo_of(serving: Serving, model: str, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else await serving.engine.detokenize(model, prompt)


def note(request: Request, serving: Serving, model: str, stream: bool, said: Any) -> None:
    """What the log and the metrics want to know of a request."""
    record = record_of(request)
    record.model, record.stream = model, stream
    if serving.settings.log_prompts:
        record.said = [part.model_dump(exclude_none=True) for part in said] if hasattr(said[0], "model_dump") else said
