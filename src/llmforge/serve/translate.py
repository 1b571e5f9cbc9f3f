"""From a wire request to an engine request: defaults filled in, contradictions refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from llmforge.data.example import Message
from llmforge.infer.protocol import Capabilities, Conversation, GenerateRequest, Sampling
from llmforge.serve.errors import ApiError
from llmforge.serve.wire import REFUSED, ChatRequest

TOP_P_NOTHING = 1e-9  # top_p 0 keeps the likeliest token alone
# Fields of the wire whose name and meaning are those of Sampling.
SAME = (
    "temperature",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_p",
    "seed",
    "n",
    "ignore_eos",
)
NAMES = {"max_new_tokens": "max_tokens", "stop_ids": "stop_token_ids"}


def to_engine(
    body: ChatRequest, defaults: Sampling, can: Capabilities, *, deadline_s: float | None = None, request_id: str = ""
) -> GenerateRequest:
    """The engine's request.

    Args:
        defaults: the server's sampling; a field that the client gives goes before it.
        can: what the engine honours; more is refused by name.

    Raises:
        ApiError: 400 with the field that is unsupported or contradicts another.
    """
    refuse_unsupported(body)
    sampling = to_sampling(body, defaults)
    for field in dataclasses.fields(Sampling):
        if field.name not in can.sampling and getattr(sampling, field.name) != getattr(defaults, field.name):
            name = NAMES.get(field.name, field.name)
            raise ApiError(400, f"{name} is not supported by this engine", param=name)
    constraint = body.response_format.to_constraint() if body.response_format else None
    if constraint and constraint["type"] not in can.constraints:
        message = f"response_format of type {constraint['type']!r} is not supported by this engine"
        raise ApiError(400, message, param="response_format")
    tools = () if body.tool_choice == "none" else tuple(body.tools or ())
    messages = tuple(message.to_message(f"messages.{i}") for i, message in enumerate(body.messages))
    check_tool_results(body, messages)
    conversation = Conversation(messages, tools)
    return GenerateRequest(body.model, conversation, sampling, constraint, deadline_s, request_id=request_id)


def refuse_unsupported(body: ChatRequest) -> None:
    """Refuse fields that are known and cannot be honoured."""
    for name, (is_fine, why) in REFUSED.items():
        value = getattr(body, name)
        if value is not None and not is_fine(value):
            raise ApiError(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")
    if body.tool_choice not in (None, "none", "auto"):
        raise ApiError(
            400,
            "tool_choice: a forced call needs constrained decoding, which is not supported yet; say 'auto' or 'none'",
            param="tool_choice",
            code="unsupported_parameter",
        )
    if body.tool_choice is not None and not body.tools:
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options belong to stream: true", param="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if body.decoder == "contrastive":
        raise ApiError(400, "decoder 'contrastive' is not supported yet; say 'sample' or 'greedy'", param="decoder")


def to_sampling(body: ChatRequest, defaults: Sampling) -> Sampling:
    """The client's settings over the server's."""
    changes: dict[str, Any] = {name: value for name in SAME if (value := getattr(body, name)) is not None}
    if body.top_p is not None:
        changes["top_p"] = body.top_p or TOP_P_NOTHING
    if body.top_k is not None:
        changes["top_k"] = max(body.top_k, 0)
    changes.update(limits(body))
    if body.stop is not None:
        changes["stop"] = tuple(body.stop)
    if body.stop_token_ids is not None:
        changes["stop_ids"] = tuple(body.stop_token_ids)
    if body.logit_bias is not None:
        changes["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    if body.logprobs:
        changes["logprobs"] = body.top_logprobs or 0
    if body.decoder == "greedy":
        if body.temperature:
            raise ApiError(400, f"decoder 'greedy' contradicts temperature {body.temperature}", param="decoder")
        changes["temperature"] = 0.0
    elif body.decoder == "sample" and body.temperature is None and not defaults.temperature:
        changes["temperature"] = 1.0
    return dataclasses.replace(defaults, **changes)


def limits(body: ChatRequest) -> dict[str, int | None]:
    """How long the reply may be. A given max_length stands alone, and null there is the rest of the context."""
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise ApiError(
            400, "max_tokens and max_completion_tokens mean the same and differ; give one", param="max_tokens"
        )
    asked = body.max_completion_tokens or body.max_tokens
    found: dict[str, int | None] = {}
    if "max_length" in body.model_fields_set:
        found = {"max_length": body.max_length, "max_new_tokens": None}
    return found | ({"max_new_tokens": asked} if asked else {})


def check_tool_results(body: ChatRequest, messages: Sequence[Message]) -> None:
    """A tool result answers a call that stands before it."""
    called: set[str | None] = set()
    for i, (message, wire) in enumerate(zip(messages, body.messages, strict=True)):
        called |= {call.id for call in message.tool_calls}
        if message.role == "tool" and wire.tool_call_id not in called:
            where = f"messages.{i}.tool_call_id"
            raise ApiError(
                400, f"{where}: {wire.tool_call_id!r} is no call of an assistant message before it", param=where
            )
