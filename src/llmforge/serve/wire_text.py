"""The bodies of the addresses beside chat: completions, embeddings, scores, tokens, and the server's own switches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from llmforge.serve.wire import Body, Ids, Sampled
from llmforge.serve.wire_chat import MAX_MESSAGES, MAX_TOOLS, ChatMessage, ToolList

MAX_TEXTS = 2048

Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
ManyIds = Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
SomeIds = Annotated[Ids, Field(min_length=1)]


class CompletionRequest(Sampled):
    """POST /v1/completions: raw texts, or token ids, that are continued."""

    prompt: str | Texts | SomeIds | ManyIds
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    # Known, and refused unless they ask for what happens anyway.
    best_of: Any = None
    suffix: Any = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


REFUSED_OF_COMPLETIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "best_of": (lambda v: v == 1, "ask for n replies and take the best"),
    "suffix": (lambda v: v == "", "text can be continued, not filled in"),
}


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: str
    input: str | Texts | SomeIds | ManyIds
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None
    # Ours.
    pooling: Literal["mean", "last", "cls"] | None = None
    max_length: int | None = Field(None, ge=1)

    def inputs(self) -> list[str | list[int]]:
        """The texts, or the ids of each."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)


Conversation = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class ScoreRequest(Body):
    """POST /v1/score: the reward of one conversation, or of several."""

    model: str
    messages: Conversation | None = None
    conversations: Annotated[list[Conversation], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    token_scores: bool | None = None
    user: str | None = None


class TokenizeRequest(Body):
    """POST /tokenize: the ids of a raw prompt, or of a conversation in the model's template."""

    model: str
    prompt: str | None = None
    messages: Conversation | None = None
    tools: Annotated[ToolList, Field(max_length=MAX_TOOLS)] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str
    tokens: Ids


class LoadAdapterRequest(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapterRequest(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


class DegradeRequest(Body):
    """POST /admin/degrade."""

    mode: Literal["off", "queue", "canned", "hide"]
