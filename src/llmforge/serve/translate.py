"""From a wire request to an engine request: defaults filled in, contradictions refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmforge.data.example import Message
from llmforge.infer.protocol import Capabilities, Conversation, GenerateRequest, Sampling
from llmforge.serve.errors import ApiError
from llmforge.serve.wire import Body, Sampled
from llmforge.serve.wire_chat import REFUSED, ChatMessage, ChatRequest, NamedTool

TOP_P_NOTHING = 1e-9  # top_p 0 keeps the likeliest token alone
PENALTY_ALPHA, CONTRASTIVE_TOP_K = 0.6, 4  # of decoder "contrastive"
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
    "penalty_alpha",
)
NAMES = {"max_new_tokens": "max_tokens", "stop_ids": "stop_token_ids", "penalty_alpha": "decoder"}


def to_engine(
    body: ChatRequest, model: str, defaults: Sampling, can: Capabilities, *, strict_400: bool = False
) -> GenerateRequest:
    """The engine's request.

    Args:
        model: the served name that the body's stands for.
        defaults: the server's sampling; a field that the client gives goes before it.
        can: what the engine honours; more is refused by name.
        strict_400: the last message must be the user's.

    Raises:
        ApiError: 400 with the field that is unsupported or contradicts another.
    """
    refuse(body, REFUSED)
    check_together(body)
    sampling = to_sampling(body, defaults, can)
    if body.logprobs:
        sampling = dataclasses.replace(sampling, logprobs=body.top_logprobs or 0)
        check_engine(sampling, defaults, can)
    messages = to_messages(body.messages, "messages")
    if strict_400 and messages[-1].role not in ("user", "tool"):
        raise ApiError(400, "messages: the last one must be of role 'user'", param="messages", code="invalid_messages")
    tools = () if body.tool_choice == "none" else tuple(body.tools or ())
    constraint = constraint_of(body, can)
    return GenerateRequest(model, Conversation(messages, tools), sampling, constraint, streams=bool(body.stream))


def to_messages(wire: Sequence[ChatMessage], where: str) -> tuple[Message, ...]:
    """The canonical messages; a tool result must answer a call that stands before it."""
    messages = tuple(message.to_message(f"{where}.{i}") for i, message in enumerate(wire))
    called: set[str | None] = set()
    for i, (message, given) in enumerate(zip(messages, wire, strict=True)):
        called |= {call.id for call in message.tool_calls}
        if message.role == "tool" and given.tool_call_id not in called:
            place = f"{where}.{i}.tool_call_id"
            raise ApiError(
                400, f"{place}: {given.tool_call_id!r} is no call of an assistant message before it", param=place
            )
    return messages


def constraint_of(body: ChatRequest, can: Capabilities) -> dict[str, Any] | None:
    """What the reply is bound to: a response format, or a call that is asked for."""
    constraint = body.response_format.to_constraint() if body.response_format else None
    param = "response_format"
    if body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool):
        if constraint:
            raise ApiError(400, "response_format contradicts a tool_choice that forces a call", param=param)
        name = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
        constraint = {"type": "tool_calls", "name": name, "parallel": body.parallel_tool_calls is not False}
        param = "tool_choice"
    if constraint and constraint["type"] not in can.constraints:
        message = f"{param} of type {constraint['type']!r} is not supported by {can.engine}"
        raise ApiError(400, message, param=param, code="unsupported_parameter")
    return constraint


def refuse(body: Body, refused: Mapping[str, tuple[Callable[[Any], bool], str]]) -> None:
    """Refuse fields that are known and cannot be honoured."""
    for name, (is_fine, why) in refused.items():
        value = getattr(body, name)
        if value is not None and not is_fine(value):
            raise ApiError(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")


def check_together(body: ChatRequest) -> None:
    """Refuse fields that contradict each other."""
    if body.tool_choice not in (None, "none") and not body.tools:
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    names = [tool["function"]["name"] for tool in body.tools or ()]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ApiError(400, f"tools.{i}: there are two functions called {name!r}", param=f"tools.{i}")
    is_forced = body.tool_choice == "required"
    if isinstance(body.tool_choice, NamedTool):
        is_forced = True
        if body.tool_choice.function.name not in names:
            message = f"tool_choice: no tool is called {body.tool_choice.function.name!r}; known: {', '.join(names)}"
            raise ApiError(400, message, param="tool_choice")
    for i, tool in enumerate(body.tools or ()):
        if tool["function"].get("strict") and not is_forced and body.tool_choice != "none":
            place = f"tools.{i}.function.strict"
            message = f"{place}: arguments are held to their schema where tool_choice is 'required' or names a tool"
            raise ApiError(400, message, param=place, code="unsupported_parameter")
    if body.parallel_tool_calls is not None and not body.tools:
        raise ApiError(400, "parallel_tool_calls belongs to tools", param="parallel_tool_calls")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")


def to_sampling(body: Sampled, defaults: Sampling, can: Capabilities) -> Sampling:
    """The client's settings over the server's.

    Raises:
        ApiError: settings that contradict each other, or that the engine does not honour.
    """
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options belong to stream: true", param="stream_options")
    changes: dict[str, Any] = {name: value for name in SAME if (value := getattr(body, name)) is not None}
    if body.top_p is not None:
        changes["top_p"] = body.top_p or TOP_P_NOTHING
    if body.top_k is not None:
        changes["top_k"] = max(body.top_k, 0)
    changes |= limits(body)
    if body.stop is not None:
        changes["stop"] = tuple(body.stop)
    if body.stop_token_ids is not None:
        changes["stop_ids"] = tuple(body.stop_token_ids)
    if body.logit_bias is not None:
        changes["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    changes |= decoder(body, defaults)
    sampling = dataclasses.replace(defaults, **changes)
    check_engine(sampling, defaults, can)
    return sampling


def check_engine(sampling: Sampling, defaults: Sampling, can: Capabilities) -> None:
    """Refuse what the engine does not honour."""
    fields = [field.name for field in dataclasses.fields(Sampling)]
    for field in ("penalty_alpha", *fields):  # first, since `decoder` sets other fields too
        if field not in can.sampling and getattr(sampling, field) != getattr(defaults, field):
            name = NAMES.get(field, field)
            raise ApiError(400, f"{name} is not supported by {can.engine}", param=name, code="unsupported_parameter")


def decoder(body: Sampled, defaults: Sampling) -> dict[str, Any]:
    """What `decoder` says in terms of the other settings."""
    if body.penalty_alpha and body.decoder not in (None, "contrastive"):
        raise ApiError(400, f"decoder {body.decoder!r} contradicts penalty_alpha", param="decoder")
    if body.decoder == "contrastive" and body.penalty_alpha == 0:
        return {"temperature": 0.0}  # the search without its penalty
    if body.decoder == "contrastive":
        return {
            "penalty_alpha": PENALTY_ALPHA if body.penalty_alpha is None else body.penalty_alpha,
            "top_k": CONTRASTIVE_TOP_K if body.top_k is None else max(body.top_k, 0),
        }
    if body.decoder == "greedy":
        if body.temperature:
            raise ApiError(400, f"decoder 'greedy' contradicts temperature {body.temperature}", param="decoder")
        return {"temperature": 0.0}
    if body.decoder == "sample" and body.temperature is None and not defaults.temperature:
        return {"temperature": 1.0}
    return {}


def limits(body: Sampled) -> dict[str, int | None]:
    """How long the reply may be. A given max_length stands alone, and null there is the rest of the context."""
    asked = body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        if asked is not None and asked != body.max_completion_tokens:
            raise ApiError(
                400, "max_tokens and max_completion_tokens mean the same and differ; give one", param="max_tokens"
            )
        asked = body.max_completion_tokens
    found: dict[str, int | None] = {}
    if "max_length" in body.model_fields_set:
        found = {"max_length": body.max_length, "max_new_tokens": None}
    return found | ({"max_new_tokens": asked} if asked else {})
