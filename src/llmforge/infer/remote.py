"""RemoteEngine: any OpenAI-compatible server behind the engine protocol. It never tries again; its callers do."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from llmforge.config.schema import Recipe
from llmforge.data.example import Message, ToolCall
from llmforge.errors import RecipeError, require
from llmforge.infer.protocol import (
    Capabilities,
    Conversation,
    Embeddings,
    EngineBusy,
    EngineFailure,
    EngineStats,
    EngineUnavailable,
    FinishReason,
    GenerateRequest,
    ModelCard,
    Piece,
    RequestError,
    Sampling,
    Scores,
    TokenIds,
    UnknownModel,
    Usage,
)

if TYPE_CHECKING:
    import openai

# Fields of Sampling that the wire format knows, by its names.
WIRE = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "logit_bias": "logit_bias",
    "n": "n",
}
FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "timeout": "timeout"}
FORBIDDEN_HOSTS = ("169.254.169.254", "metadata.google.internal")  # a cloud machine's own credentials
RETRY_AFTER_S = 1.0  # where a 429 does not say


class RemoteEngine:
    """One model of a server.

    Args:
        base_url: up to and with `/v1`.
        model: the server's name of it.
        api_key: sent as a bearer token; never shown or written.
        timeout_s: seconds a whole request may take; `connect_timeout_s` of them for the connection.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        connect_timeout_s: float = 10.0,
    ):
        self.base_url, self.model = check_url(base_url), model
        self.timeout_s, self.connect_timeout_s = timeout_s, connect_timeout_s
        self._api_key = api_key
        self._client: openai.AsyncOpenAI | None = None
        self._running = self._prompt_tokens = self._completion_tokens = 0

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> RemoteEngine:
        """The server of `base_url` and its model `model_name_or_path`.

        Raises:
            RecipeError: one of them is missing.
        """
        if not recipe.serve.base_url or not recipe.model.model_name_or_path:
            raise RecipeError("infer_backend: remote needs base_url (of the server) and model_name_or_path (its model)")
        key = os.environ.get(recipe.serve.key_env) if recipe.serve.key_env else None
        if recipe.serve.key_env and not key:
            raise RecipeError(f"key_env: the environment variable {recipe.serve.key_env} is not set")
        return cls(recipe.serve.base_url, recipe.model.model_name_or_path, api_key=key)

    async def start(self) -> None:
        """Make the client; the server is first spoken to by a request."""
        require("openai", "data", "a remote engine")
        import openai

        host = urlsplit(self.base_url).hostname or ""
        is_here = host == "localhost" or host.startswith("127.") or host == "::1"
        timeout = openai.Timeout(self.timeout_s, connect=self.connect_timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key or "none",
            organization="",
            project="",
            max_retries=0,
            timeout=timeout,
            # A redirect would carry the key and the data to a server nobody named; a proxy cannot reach this machine.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout, trust_env=not is_here),
        )

    async def stop(self, drain_s: float = 0.0) -> None:
        """Close the connections; requests under way end with an error."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """See Engine; each reply comes as one piece."""
        if self._client is None:
            raise EngineUnavailable("the remote engine is not started")
        body = self._body(request)
        self._running += 1
        try:
            async with asyncio.timeout(min(self.timeout_s, request.deadline_s or self.timeout_s)):
                answer = await self._client.chat.completions.create(**body)
        except TimeoutError:
            raise EngineUnavailable("no answer in time") from None
        except Exception as error:
            raise _translated(error, self.model) from error
        finally:
            self._running -= 1
        usage = _usage(answer)
        if usage is not None:
            self._prompt_tokens += usage.prompt_tokens
            self._completion_tokens += usage.completion_tokens
        choices = getattr(answer, "choices", None)
        if not choices:
            raise EngineFailure("the server's answer has no choices")
        for number, choice in enumerate(choices):
            last = number == len(choices) - 1
            yield _piece(choice, number, usage if last else None, bool(body.get("tools")))

    async def embed(
        self, model: str, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None
    ) -> Embeddings:
        raise RequestError("the remote engine makes no embeddings yet")

    async def score(self, model: str, conversations: Sequence[Conversation | TokenIds]) -> Scores:
        raise RequestError("the remote engine gives no reward scores: the OpenAI wire format has none")

    async def tokenize(self, model: str, prompt: Conversation | str) -> list[int]:
        raise RequestError("the remote engine has no tokenizer; ask its server")

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        raise RequestError("the remote engine has no tokenizer; ask its server")

    async def load_adapter(self, name: str, path: str) -> None:
        raise RequestError("a remote server's adapters are loaded on that server")

    async def unload_adapter(self, name: str) -> None:
        raise RequestError("a remote server's adapters are loaded on that server")

    def models(self) -> list[ModelCard]:
        return [ModelCard(self.model, self.model)]

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset(WIRE), frozenset({"json_object", "json_schema"}), engine="the remote engine")

    def stats(self) -> EngineStats:
        return EngineStats(self._running, 0, self._prompt_tokens, self._completion_tokens, self._client is not None)

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        """The request on the wire.

        Raises:
            RequestError: what the wire format cannot say, by its name.
        """
        if not isinstance(request.prompt, Conversation):
            raise RequestError("prompt: the remote engine takes messages, not token ids", param="prompt")
        plain = Sampling()
        body: dict[str, Any] = {"model": request.model, "messages": [_message(m) for m in request.prompt.messages]}
        for name in Sampling.__dataclass_fields__:
            value = getattr(request.sampling, name)
            if value == getattr(plain, name):
                continue
            if name not in WIRE:
                raise RequestError(f"{name}: the remote engine cannot ask for it", param=name)
            body[WIRE[name]] = list(value) if isinstance(value, tuple) else value
        if request.prompt.tools:
            body["tools"] = list(request.prompt.tools)
        if request.constraint is not None:
            kind = request.constraint.get("type")
            if kind not in self.capabilities().constraints:
                raise RequestError(f"response_format: the remote engine knows no {kind!r}", param="response_format")
            body["response_format"] = _response_format(request.constraint)
        return body


def check_url(url: str) -> str:
    """A server's URL as it may be used.

    Raises:
        RecipeError: not http(s), with a name and password inside, or a cloud's metadata service.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(f"base_url: got {url!r}, expected http://HOST:PORT/v1 or https://HOST/v1")
    if parts.username or parts.password:
        raise RecipeError("base_url: holds a name or password; put the key into the environment and name it in key_env")
    if parts.hostname in FORBIDDEN_HOSTS:
        raise RecipeError(f"base_url: {parts.hostname} hands out a machine's credentials and is never asked")
    return url.rstrip("/")


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return wire


def _response_format(constraint: Mapping[str, Any]) -> dict[str, Any]:
    if constraint.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": constraint["schema"]}}
    return {"type": constraint.get("type")}


def _piece(choice: Any, number: int, usage: Usage | None, has_tools: bool) -> Piece:
    text = choice.message.content or "" if choice.message else ""
    reason = FINISH.get(choice.finish_reason or "stop", "error")
    error = f"the server ended the reply with {choice.finish_reason!r}" if reason == "error" else None
    message = _reply(choice.message, text) if has_tools else None
    return Piece(number, (), text, finish_reason=reason, usage=usage, error=error, message=message)


def _reply(message: Any, text: str) -> Message:
    calls = []
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments)
        except ValueError:
            raise EngineFailure(f"the call of {call.function.name!r} has arguments that are no JSON") from None
        calls.append(ToolCall(call.function.name, arguments, call.id))
    return Message("assistant", text, tuple(calls))


def _usage(answer: Any) -> Usage | None:
    usage = getattr(answer, "usage", None)
    counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    return Usage(*cast("tuple[int, int]", counts)) if all(isinstance(count, int) for count in counts) else None


def _translated(error: Exception, model: str) -> Exception:
    """The client's error in the words of the engine protocol."""
    import openai

    match error:
        case openai.APITimeoutError():
            return EngineUnavailable("no answer in time")
        case openai.RateLimitError() if _code(error) == "insufficient_quota":
            return RequestError(_said(error), code="insufficient_quota")  # waiting does not help
        case openai.RateLimitError():
            return EngineBusy(f"the server is busy: {_said(error)}", _retry_after(error))
        case openai.NotFoundError():
            return UnknownModel(model, [f"what {error.request.url.host} serves"])
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            message = f"the server refuses the key ({error.status_code}): {_said(error)}"
            return RequestError(message, param="api_key", code="invalid_api_key")
        case openai.InternalServerError():
            return EngineUnavailable(f"the server failed ({error.status_code}): {_said(error)}")
        case openai.APIStatusError() if error.status_code >= 400 and error.status_code not in (408, 409):
            body = error.body if isinstance(error.body, dict) else {}
            return RequestError(_said(error), param=body.get("param"), code=body.get("code"))
        case openai.APIStatusError():
            return EngineUnavailable(f"the server answered {error.status_code}: {_said(error)}")
        case openai.APIConnectionError():
            cause = error.__cause__ or error
            return EngineUnavailable(f"no connection ({type(cause).__name__}: {cause})")
        case openai.APIError() | ValueError():
            return EngineFailure(f"the server's answer cannot be read ({type(error).__name__})")
    return error


def _said(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or getattr(error, "message", error))[:300]


def _code(error: Any) -> str | None:
    return error.body.get("code") if isinstance(error.body, dict) else None


def _retry_after(error: Any) -> float:
    """Seconds of a Retry-After header."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return RETRY_AFTER_S
