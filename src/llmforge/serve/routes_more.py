"""Embeddings, scores, tokens, and the lists of models."""

from __future__ import annotations

import base64
import math
import struct
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from llmforge.infer.protocol import Conversation, ModelCard, TokenIds, UnknownModel
from llmforge.serve.body import read_body
from llmforge.serve.errors import ApiError
from llmforge.serve.routes import ServingNow, note
from llmforge.serve.serving import Serving, record_of
from llmforge.serve.translate import to_messages
from llmforge.serve.wire_chat import prompt_bytes
from llmforge.serve.wire_text import DetokenizeRequest, EmbeddingRequest, ScoreRequest, TokenizeRequest

router = APIRouter()


@router.get("/v1/models")
async def list_models(serving: ServingNow) -> dict[str, Any]:
    """The served names, aliases behind them."""
    return {"object": "list", "data": [card_body(name, card, serving) for name, card in serving.names().items()]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, serving: ServingNow) -> dict[str, Any]:
    """One served name."""
    names = serving.names()
    if name not in names:
        raise UnknownModel(name, list(names))
    return card_body(name, names[name], serving)


def card_body(name: str, card: ModelCard, serving: Serving) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": serving.started,
        "owned_by": "llmforge",
        "root": card.base,
        "parent": card.id if name != card.id else card.base if card.adapter else None,
        "max_model_len": card.context_length or None,
    }


@router.post("/v1/embeddings")
async def embeddings(request: Request, serving: ServingNow) -> dict[str, Any]:
    """A vector of unit length for each text."""
    body = await read_body(request, EmbeddingRequest)
    card = serving.card(body.model, "embed")
    note(request, serving, card.id, False, body.input)
    inputs = body.inputs()
    texts: list[str | TokenIds] = []
    for text in inputs:
        if isinstance(text, str) and body.max_length is None:  # a longer one is cut, where that is asked for
            serving.check_bytes(card, len(text.encode()), "input")
        texts.append(text if isinstance(text, str) else TokenIds(tuple(text)))
    doing = serving.engine.embed(card.id, texts, body.pooling or "", body.max_length)
    found = await serving.work(request, doing)
    size = len(found.vectors[0])
    if body.dimensions not in (None, size):
        message = f"dimensions: {body.model} makes vectors of {size} numbers, and no others"
        raise ApiError(400, message, param="dimensions", code="unsupported_parameter")
    record_of(request).prompt_tokens = found.prompt_tokens
    data = [
        {"object": "embedding", "index": i, "embedding": written(vector, body.encoding_format)}
        for i, vector in enumerate(found.vectors)
    ]
    return {"object": "list", "data": data, "model": body.model, "usage": usage_of(found.prompt_tokens)}


def written(vector: Sequence[float], encoding: str | None) -> list[float] | str:
    """The numbers, or base64 of little-endian float32, as OpenAI's client asks for."""
    if encoding != "base64":
        return [float(value) for value in vector]
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


@router.post("/v1/score")
async def score(request: Request, serving: ServingNow) -> dict[str, Any]:
    """The reward of each conversation, also squeezed into 0 to 1, and its tokens; null and why for one too long."""
    body = await read_body(request, ScoreRequest)
    card = serving.card(body.model, "score")
    if (body.messages is None) == (body.conversations is None):
        raise ApiError(400, "give messages (one conversation) or conversations (several)", param="conversations")
    note(request, serving, card.id, False, body.messages or body.conversations)
    wire = [body.messages] if body.messages is not None else body.conversations or []
    conversations = []
    for i, messages in enumerate(wire):
        serving.check_bytes(card, prompt_bytes(messages, None), f"conversations.{i}")
        where = "messages" if body.messages is not None else f"conversations.{i}"
        conversations.append(Conversation(to_messages(messages, where)))
    found = await serving.work(request, serving.engine.score(card.id, conversations))
    record_of(request).prompt_tokens = found.prompt_tokens
    data = []
    for i, value in enumerate(found.scores):
        entry: dict[str, Any] = {"object": "score", "index": i, "score": value}
        entry["sigmoid"] = None if value is None else sigmoid(value)
        if found.reasons and found.reasons[i]:
            entry["reason"] = found.reasons[i]
        if found.token_scores and value is not None:
            entry["length"] = len(found.token_scores[i])
        if body.token_scores:
            entry["token_scores"] = list(found.token_scores[i]) if found.token_scores else None
        data.append(entry)
    usage = usage_of(found.prompt_tokens)
    return {"id": f"score-{uuid.uuid4().hex}", "object": "list", "model": body.model, "data": data, "usage": usage}


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), for any size of value."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def usage_of(prompt_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}


@router.post("/tokenize")
async def tokenize(request: Request, serving: ServingNow) -> dict[str, Any]:
    """The ids of a raw prompt, or of a conversation up to the place where the reply begins."""
    body = await read_body(request, TokenizeRequest)
    card = tokenizing(serving, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give prompt or messages", param="prompt")
    if body.tools is not None and body.messages is None:
        raise ApiError(400, "tools belong to messages", param="tools")
    prompt: Conversation | str = body.prompt or ""
    num_bytes = len(prompt.encode()) if isinstance(prompt, str) else 0
    if body.messages is not None:
        prompt = Conversation(to_messages(body.messages, "messages"), tuple(body.tools or ()))
        num_bytes = prompt_bytes(body.messages, body.tools)
    serving.check_bytes(card, num_bytes, "prompt" if body.messages is None else "messages")
    ids = await serving.engine.tokenize(card.id, prompt)
    texts = [await serving.engine.detokenize(card.id, [id]) for id in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": card.context_length or None, "tokens": ids, "token_strs": texts}


@router.post("/detokenize")
async def detokenize(request: Request, serving: ServingNow) -> dict[str, str]:
    """The text of ids."""
    body = await read_body(request, DetokenizeRequest)
    card = tokenizing(serving, body.model)
    return {"prompt": await serving.engine.detokenize(card.id, body.tokens)}


def tokenizing(serving: Serving, name: str) -> ModelCard:
    """The model of that name, where the engine tokenises."""
    names = serving.names()
    if name not in names:
        raise UnknownModel(name, list(names))
    if not serving.engine.capabilities().tokenize:
        raise ApiError(400, "this engine does not tokenise", param="model", code="unsupported_parameter")
    return names[name]
