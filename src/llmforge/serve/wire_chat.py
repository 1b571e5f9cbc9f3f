"""The body of POST /v1/chat/completions, as pydantic types."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from llmforge.data.example import Message, ToolCall
from llmforge.serve.errors import ApiError
from llmforge.serve.wire import Body, Sampled

MAX_MESSAGES = 4096
MAX_TOOLS = 512
MAX_PARTS = 4096
MAX_DEPTH = 64  # JSON levels of a schema, which is walked recursively; those of real clients stay under 20


class ContentPart(Body):
    """One part of a content list; only text can be served."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None

    def plain(self, where: str) -> str:
        if self.type not in ("text", "refusal"):
            raise ApiError(
                400, f"{where}: parts of type {self.type!r} are not supported; this server reads text", param=where
            )
        text = self.text if self.type == "text" else self.refusal
        if text is None:
            raise ApiError(422, f"{where}: a part of type {self.type!r} needs {self.type!r}", param=where)
        return text


class CalledFunction(Body):
    """Name and JSON arguments of a call, as the assistant wrote it."""

    name: str
    arguments: str


class CalledTool(Body):
    """A call in an assistant message of the history."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def to_call(self, where: str) -> ToolCall:
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            where = f"{where}.function.arguments"
            raise ApiError(400, f"{where}: expected a JSON object in a string", param=where)
        return ToolCall(self.function.name, arguments, self.id)


class ChatMessage(Body):
    """A message of any role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    name: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None

    @model_validator(mode="after")
    def check_role(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise ValueError(f"content of a message of role {self.role!r} must be a text or a list of parts")
        for field in ("tool_calls", "reasoning_content", "refusal"):
            if getattr(self, field) and self.role != "assistant":
                raise ValueError(f"{field} belongs to messages of role 'assistant'")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to messages of role 'tool', which need it")
        return self

    def num_bytes(self) -> int:
        """Bytes of its texts."""
        called = sum(len(call.function.arguments.encode()) for call in self.tool_calls or ())
        if isinstance(self.content, list):
            return called + sum(len((part.text or part.refusal or "").encode()) for part in self.content)
        return called + len((self.content or "").encode()) + len((self.reasoning_content or "").encode())

    def to_message(self, where: str) -> Message:
        """The canonical message; `where` is its path for errors."""
        if self.name and self.role != "tool":  # a tool's name is known by tool_call_id
            raise ApiError(
                400, f"{where}.name is not supported: the model's template has no place for it", param=f"{where}.name"
            )
        if self.annotations:
            raise ApiError(400, f"{where}.annotations is not supported", param=f"{where}.annotations")
        content = self.content if self.content is not None else self.refusal or ""
        if isinstance(content, list):
            content = "\n".join(part.plain(f"{where}.content.{i}") for i, part in enumerate(content))
        calls = tuple(call.to_call(f"{where}.tool_calls.{i}") for i, call in enumerate(self.tool_calls or ()))
        role = "system" if self.role == "developer" else self.role
        return Message(role, content, calls, self.reasoning_content)


class FunctionSpec(Body):
    """A function the model may call."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool the model may call."""

    type: Literal["function"]
    function: FunctionSpec


def check_depth(value: Any) -> Any:
    """Refuse what is nested too deeply to be walked, and what the JSON of a prompt cannot hold."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, (dict, list)):
                below += item.values() if isinstance(item, dict) else item
            elif isinstance(item, float) and not abs(item) < float("inf"):
                raise ValueError("holds a number that is none (NaN or infinite)")
        if not below:
            return value
        level = below
    raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")


def check_tool(value: Any) -> Any:
    """Validate a tool, and keep it as it came: the order of its keys is part of the prompt."""
    check_depth(value)
    try:
        Tool.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return value


ToolList = list[Annotated[dict[str, Any], AfterValidator(check_tool)]]


def prompt_bytes(messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]] | None) -> int:
    """Bytes of the texts in messages and tools; a template writes them all, and more beside."""
    return sum(message.num_bytes() for message in messages) + sum(map(_text_bytes, tools or ()))


def _text_bytes(value: Any) -> int:
    """Bytes of all texts and names in a value that check_depth has seen."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(len(name.encode()) + _text_bytes(part) for name, part in value.items())
    return sum(map(_text_bytes, value)) if isinstance(value, list) else 0


class NamedFunction(Body):
    """The function of a forced choice."""

    name: str


class NamedTool(Body):
    """A forced choice."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema for the reply."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(check_depth)] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What form the reply must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type 'json_schema', which needs it")
        return self

    def to_constraint(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        return {"type": self.type, **({"schema": self.json_schema.schema_ or {}} if self.json_schema else {})}


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[ToolList, Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    # Names of the asker and of its cache; accepted, without effect on the reply.
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Known, and refused unless they ask for what happens anyway; see `REFUSED`.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None
    web_search_options: Any = None


# Fields that are refused by name, with what they may hold nevertheless, and why.
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "audio": (lambda v: False, "this server writes text only"),
    "function_call": (lambda v: False, "use tool_choice"),
    "functions": (lambda v: False, "use tools"),
    "metadata": (lambda v: v == {}, "completions are not stored"),
    "modalities": (lambda v: v == ["text"], "this server writes text only"),
    "moderation": (lambda v: False, "there is no moderation here"),
    "prediction": (lambda v: False, "predicted output is not supported"),
    "prompt_cache_options": (lambda v: v == {}, "the cache has no options"),
    "prompt_cache_retention": (lambda v: v == "in_memory", "the cache is in memory only"),
    "reasoning_effort": (lambda v: False, "thinking is set by the recipe's enable_thinking"),
    "service_tier": (lambda v: v in ("auto", "default"), "there is one tier"),
    "store": (lambda v: v is False, "completions are not stored"),
    "verbosity": (lambda v: v == "medium", "the length of replies cannot be asked for"),
    "web_search_options": (lambda v: False, "there is no web search here"),
}
