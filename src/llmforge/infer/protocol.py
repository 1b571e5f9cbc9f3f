"""What an engine is: the few methods behind which the local engine, vLLM and remote servers stand. No torch here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from llmforge.data.example import Message
from llmforge.errors import ForgeError, RecipeError

FinishReason = Literal["stop", "length", "tool_calls", "timeout", "cancelled", "error"]


@dataclass(frozen=True)
class Conversation:
    """Messages that the engine's own template turns into ids, so every engine sees the training-time prompt.

    A last message of role "assistant" is a prefix that the reply continues.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class TokenIds:
    """A prompt that is encoded already."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy; `seed` None draws a fresh one.

    `repetition_penalty` divides or multiplies logits of tokens already in prompt or reply (1 = off);
    `presence_penalty` and `frequency_penalty` are OpenAI's, subtracted from logits of tokens in the reply.
    """

    max_new_tokens: int | None = None  # None: up to the model's context
    max_length: int | None = None  # tokens of prompt and reply together
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()  # beside the template's own
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # number of alternatives to report per token; None: no logprobs
    ignore_eos: bool = False
    n: int = 1
    penalty_alpha: float = 0.0  # above 0: contrastive decoding among the `top_k` likeliest tokens; nothing is drawn


POOLINGS = ("mean", "last", "cls")


@dataclass(frozen=True)
class GenerateRequest:
    """One request; `model` is a served name (base or adapter)."""

    model: str
    prompt: Conversation | TokenIds
    sampling: Sampling = Sampling()
    constraint: dict[str, Any] | None = None  # {"type": "json_object"} or {"type": "json_schema", "schema": {...}}
    deadline_s: float | None = None  # seconds from arrival, waiting included
    priority: int = 0
    request_id: str = ""
    streams: bool = True  # pieces are wanted as they come; without, an engine may join those after the first


@dataclass(frozen=True)
class TokenLogprob:
    """One chosen token with its log-probability (nats) and the best alternatives."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """A part of reply number `index`: new token ids and the text they completed (never half a character).

    The last piece of each reply carries `finish_reason`; the last piece of the request also `usage`.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None  # the cause, where finish_reason is "error"
    message: Message | None = (
        None  # with the last piece, where the conversation has tools: the reply with its calls read
    )

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """One piece for several of one reply, in their order."""
        last = pieces[-1]
        logprobs = tuple(logprob for piece in pieces for logprob in piece.logprobs or ())
        return replace(
            last,
            token_ids=tuple(id for piece in pieces for id in piece.token_ids),
            text="".join(piece.text for piece in pieces),
            logprobs=None if last.logprobs is None else logprobs,
        )


@dataclass(frozen=True)
class ModelCard:
    """A served name: a base or one adapter on it."""

    id: str
    base: str
    adapter: str | None = None
    context_length: int = 0
    aliases: tuple[str, ...] = ()
    tasks: frozenset[str] = frozenset({"generate"})  # of "generate", "embed", "score": what requests may name it for
    tool_format: str | None = (
        None  # how its replies write calls (data/templates/tools.py), so that they can be streamed
    )
    max_prompt_bytes: int = 0  # a longer prompt cannot fit, however it is tokenised; 0: not known


@dataclass(frozen=True)
class Capabilities:
    """What an engine honours; a request that asks for more is refused by name, never served without it."""

    sampling: frozenset[str]  # names of Sampling fields
    constraints: frozenset[str] = frozenset()  # "json_object", "json_schema"
    embed: bool = False
    score: bool = False
    adapters_at_run_time: bool = False
    tokenize: bool = False
    max_running: int = 0  # replies decoded together; 0: not known
    engine: str = "this engine"  # what refusals call it


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing now."""

    running: int
    waiting: int
    prompt_tokens: int  # since start
    completion_tokens: int
    ready: bool = True  # False while loading, draining or stopped
    workers: int = 1  # alive
    workers_died: int = 0
    blocks: int = 0  # of the key-value cache, over all workers; 0 where an engine does not tell
    blocks_used: int = 0  # held by running replies
    blocks_cached: int = 0  # held by nobody, kept because their text may come again
    looked_up_tokens: int = 0  # of prompts that began to run, since start
    found_tokens: int = 0  # of these, in the cache already
    preempted: int = 0  # replies whose blocks were taken for others and that were computed again
    drafted_tokens: int = 0  # read on trial behind greedy replies
    kept_tokens: int = 0  # of these, that became the reply's
    steps: int = 0  # forward passes


@dataclass(frozen=True)
class Embeddings:
    """Unit-length vectors, one per text; `prompt_tokens` are those read, control tokens included."""

    vectors: Sequence[Sequence[float]]
    prompt_tokens: int


@dataclass(frozen=True)
class Scores:
    """Reward of each conversation: the value head's output at its last token.

    A conversation that is too long has score None and a reason; the others are scored.
    """

    scores: Sequence[float | None]
    prompt_tokens: int
    token_scores: Sequence[Sequence[float]] = ()  # per conversation, the value at each of its tokens
    reasons: Sequence[str | None] = ()


class RequestError(RecipeError):
    """A request that cannot be served as it stands. `param` names the field, `code` is OpenAI's word for the case."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param, self.code = param, code


class PromptTooLong(RequestError):
    """The prompt leaves no room for a reply; the message holds both numbers."""

    def __init__(self, num_tokens: int, limit: int, what: str = "the model's context"):
        message = f"the prompt has {num_tokens} tokens; {what} is {limit} tokens, one of which the reply needs"
        super().__init__(message, param="messages", code="context_length_exceeded")


class UnknownModel(RequestError):
    """No such served name; the message lists the names."""

    def __init__(self, name: str, served: Sequence[str]):
        message = f"model {name!r} is not served here; known: {', '.join(served)}"
        super().__init__(message, param="model", code="model_not_found")


class EngineBusy(ForgeError):
    """The queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineUnavailable(ForgeError):
    """The engine is loading, draining or stopped."""


class EngineFailure(ForgeError):
    """This request failed inside the engine; others go on."""


class Engine(Protocol):
    """Generation behind one interface.

    `generate` raises RequestError, EngineBusy or EngineUnavailable at the first step, before any piece; a request that
    fails later raises EngineFailure. Closing its iterator cancels the request.

    `embed` pools the last hidden states of each text: "mean", "last" or "cls", "" for what the model was made for. A
    text longer than the model reads is refused, or with `max_tokens` cut to so many tokens.

    `tokenize` gives the ids a prompt would have; a text is a raw prompt (of a base model), with bos where the tokenizer
    adds one, and a control token typed in it stays text.
    """

    async def start(self) -> None: ...
    async def stop(self, drain_s: float = 0.0) -> None: ...
    def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]: ...
    async def embed(
        self, model: str, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None
    ) -> Embeddings: ...
    async def score(self, model: str, conversations: Sequence[Conversation | TokenIds]) -> Scores: ...
    async def tokenize(self, model: str, prompt: Conversation | str) -> list[int]: ...
    async def detokenize(self, model: str, ids: Sequence[int]) -> str: ...
    async def load_adapter(self, name: str, path: str) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...
    def models(self) -> list[ModelCard]: ...
    def capabilities(self) -> Capabilities: ...
    def stats(self) -> EngineStats: ...
