"""What the core keeps of a request and of each reply while it grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmforge.infer.local.draw import Choice, Draw
from llmforge.infer.local.text import ReplyText
from llmforge.infer.protocol import Conversation, FinishReason, GenerateRequest, Piece, TokenLogprob

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer
    from llmforge.infer.local.grammar import Matcher


@dataclass
class Job:
    """A request, encoded and checked, ready to run. Setting `cancelled` ends its replies at the next step."""

    request: GenerateRequest
    prompt_ids: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int]
    stop: tuple[str, ...]
    seed: int
    adapter: str | None = None  # PEFT adapter; "" is the base without any, None the module as it stands
    deadline_at: float | None = None  # time.monotonic()
    cancelled: bool = False

    @property
    def num_rows(self) -> int:
        return self.request.sampling.n

    @property
    def has_tools(self) -> bool:
        """Whether the reply may call tools."""
        return isinstance(self.request.prompt, Conversation) and bool(self.request.prompt.tools)


class GrowingReply:
    """One reply of a job: takes tokens, gives pieces, knows when it has ended."""

    def __init__(
        self,
        number: int,
        job: Job,
        index: int,
        text: ReplyText,
        tokenizer: Tokenizer,
        template: Template,
        matcher: Matcher | None = None,
    ):
        self.number, self.job, self.index, self.text, self.matcher = number, job, index, text, matcher
        self.tokenizer, self.template = tokenizer, template
        self.token_ids: list[int] = []
        self.ended = False
        self._pending: list[int] = []  # tokens that no piece has carried yet
        self._given = ""  # all text of pieces, kept to read tool calls from it
        self._logprobs: list[TokenLogprob] = []

    @property
    def draw(self) -> Draw:
        return Draw(self.job.request.sampling, self.job.seed, self.index, self.job.prompt_ids, self.token_ids)

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, to be taken without asking the model.

        None where log-probabilities are asked for, which only the model knows.
        """
        if self.ended or self.matcher is None or self.job.request.sampling.logprobs is not None:
            return []
        return self.matcher.forced()

    def interrupted(self) -> Piece | None:
        """The last piece, when the request was cancelled or its time is over."""
        if self.job.cancelled:
            return self._end("cancelled")
        if self.job.deadline_at is not None and time.monotonic() >= self.job.deadline_at:
            return self._end("timeout")
        return None

    def end(self, reason: FinishReason) -> Piece:
        """The last piece, where something else than the tokens says that the reply is over."""
        return self._end(reason)

    def fail(self, error: str) -> Piece:
        """The last piece, when the reply cannot go on."""
        return self._end("error", error=error)

    def take(self, choice: Choice | None) -> Piece | None:
        """Add a token; return a piece when text came out or the reply ended."""
        if choice is None:
            failed = None if self.matcher is None else self.matcher.error
            return self._end("error", error=failed or "the model gave no usable logits (NaN or infinite)")
        self.token_ids.append(choice.token_id)
        if self.matcher is not None:
            self.matcher.take(choice.token_id)
        self._pending.append(choice.token_id)
        if self.job.request.sampling.logprobs is not None:
            self._logprobs.append(self._as_logprob(choice))
        if choice.token_id in self.job.stop_ids:
            return self._end("stop")
        text = self.text.push(choice.token_id)
        if self.text.stopped:
            return self._end("stop", text)
        if len(self.token_ids) >= self.job.max_new_tokens:
            return self._end("length", text)
        return self._piece(text) if text else None

    def _end(self, reason: FinishReason, text: str = "", error: str | None = None) -> Piece:
        self.ended = True
        text += self.text.flush()
        if self.text.stopped and reason == "length":
            reason = "stop"
        return self._piece(text, reason, error)

    def _piece(self, text: str, reason: FinishReason | None = None, error: str | None = None) -> Piece:
        self._given += text
        message = self.template.parse_reply(self._given) if reason is not None and self.job.has_tools else None
        if message is not None and message.tool_calls and reason == "stop":
            reason = "tool_calls"
        asked = self.job.request.sampling.logprobs is not None
        logprobs = tuple(self._logprobs) if asked else None
        piece = Piece(self.index, tuple(self._pending), text, logprobs, reason, error=error, message=message)
        self._pending, self._logprobs = [], []
        return piece

    def _as_logprob(self, choice: Choice) -> TokenLogprob:
        top = tuple((id, token_text(self.tokenizer, id), logprob) for id, logprob in choice.top)
        return TokenLogprob(choice.token_id, token_text(self.tokenizer, choice.token_id), choice.logprob, top)


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """Text of one token inside a text, its leading space included (a decoder drops it at the start of a text)."""
    anchor = tokenizer.ids("a")[-1:]
    return tokenizer.decode([*anchor, id])[len(tokenizer.decode(anchor)) :]


@dataclass(frozen=True)
class Reply:
    """One whole reply."""

    text: str
    token_ids: tuple[int, ...]  # the stop token included
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: str | None = None

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Reply:
        """Join the pieces of one reply."""
        last = pieces[-1]
        logprobs = tuple(logprob for piece in pieces for logprob in piece.logprobs or ())
        return cls(
            "".join(piece.text for piece in pieces),
            tuple(id for piece in pieces for id in piece.token_ids),
            last.finish_reason or "error",
            logprobs if last.logprobs is not None else None,
            last.error,
        )
