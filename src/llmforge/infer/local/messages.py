"""What an engine and its workers tell each other. No torch; everything here travels between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmforge.errors import ForgeError, RecipeError
from llmforge.infer.local.reply import Job
from llmforge.infer.protocol import EngineFailure, Piece, RequestError

# To a worker


@dataclass(frozen=True)
class Begin:
    """Run a job; `number` names it from now on."""

    number: int
    job: Job


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this job any more."""

    number: int


@dataclass(frozen=True)
class Call:
    """Call a method of the worker's ServedModels between two steps."""

    number: int
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Quit:
    """End."""


# From a worker


@dataclass(frozen=True)
class CoreStats:
    """What a core is doing, and has done since it began; blocks and looked-up tokens are 0 for padded batches."""

    running: int
    waiting: int
    blocks: int = 0
    blocks_used: int = 0  # held by rows
    blocks_cached: int = 0  # held by nobody, kept for their text
    prompt_tokens: int = 0
    completion_tokens: int = 0
    looked_up_tokens: int = 0  # of prompts that were admitted
    found_tokens: int = 0  # of these, whose keys and values were there already
    computed_tokens: int = 0  # that a forward pass over blocks has read, wrong drafts left out
    drafted_tokens: int = 0
    kept_tokens: int = 0  # of these, that became the reply's
    preempted: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Came:
    """Pieces of one step, and how the worker is."""

    pieces: list[tuple[int, Piece]]
    stats: CoreStats


@dataclass(frozen=True)
class Refused:
    """A job that could not begin."""

    number: int
    error: Problem


@dataclass(frozen=True)
class Answer:
    """What a call gave."""

    number: int
    value: Any = None
    error: Problem | None = None


@dataclass(frozen=True)
class Died:
    """The worker is no more."""

    reason: str


@dataclass(frozen=True)
class Problem:
    """An exception in a form that travels: a request's, a recipe's, or the engine's own."""

    kind: str
    text: str
    param: str | None = None
    code: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Problem:
        if isinstance(error, RequestError):
            return cls("request", str(error), error.param, error.code)
        kind = "recipe" if isinstance(error, RecipeError) else "failure"
        return cls(kind, str(error) if isinstance(error, ForgeError) else f"{type(error).__name__}: {error}")

    def as_error(self) -> ForgeError:
        """The exception again."""
        if self.kind == "request":
            return RequestError(self.text, param=self.param, code=self.code)
        return RecipeError(self.text) if self.kind == "recipe" else EngineFailure(self.text)
