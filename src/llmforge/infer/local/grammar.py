"""Constrained decoding: which tokens may come next so that a reply stays inside a JSON grammar, by llguidance."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmforge.errors import require
from llmforge.infer.local.call_grammar import write_call_grammar
from llmforge.infer.protocol import RequestError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer

KINDS = ("json_object", "json_schema", "tool_calls")
CACHED = 64  # compiled grammars kept; a server's clients send the same few schemas again and again
# One way to write white space: a small model would otherwise fill its reply with blanks, which the grammar allows.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
WORD = 32  # bits in a word of llguidance's masks


def kinds() -> frozenset[str]:
    """The constraints that can be honoured here."""
    return frozenset(KINDS) if importlib.util.find_spec("llguidance") else frozenset()


class Grammars:
    """Grammars over one vocabulary; compiling one takes milliseconds, the first one reads the vocabulary.

    Args:
        vocab_size: width of the logits.
        stop_ids: tokens that end a reply; allowed where the grammar may end.
        template: how replies write tool calls; without it there are no grammars of calls.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int], template: Template | None = None
    ):
        self.tokenizer, self.vocab_size, self.template = tokenizer, vocab_size, template
        self.stop_ids = sorted(id for id in stop_ids if id < vocab_size)
        self._compiled = functools.lru_cache(maxsize=CACHED)(self._compile)

    def begin(self, constraint: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()) -> Matcher:
        """A matcher at the start of a reply.

        Args:
            tools: what may be called, where the constraint is "tool_calls".

        Raises:
            RequestError: a kind that is unknown, or a schema with something the grammar cannot hold the reply to.
        """
        kind = constraint.get("type")
        if kind not in KINDS:
            raise RequestError(
                f"response format {kind!r} is not known; known: {', '.join(KINDS)}", param="response_format"
            )
        if kind == "tool_calls":
            name, parallel = constraint.get("name"), bool(constraint.get("parallel", True))
            lark = write_call_grammar(self.tokenizer, self.template, tools, name, parallel, SPACING)
            compiled = self._compiled(lark, "lark")
        else:
            schema = constraint.get("schema", {}) if kind == "json_schema" else {"type": "object"}
            compiled = self._compiled(json.dumps(schema, ensure_ascii=False), "schema")
        return Matcher(self, compiled.deep_copy())

    @functools.cached_property
    def end_id(self) -> int:
        """The token that ends a reply whose grammar is complete."""
        eos = self.tokenizer.eos_id
        return eos if eos is not None and eos in self.stop_ids else self.stop_ids[0]

    @functools.cached_property
    def thread(self) -> ThreadPoolExecutor:
        """Where masks are worked out; made at the first one, since a thread does not survive a fork."""
        return ThreadPoolExecutor(1, "llmforge-masks")

    @functools.cached_property
    def _vocabulary(self) -> Any:
        llguidance = require("llguidance", "serve", "response formats of the local engine")
        known = [id for id in self.stop_ids if id < len(self.tokenizer)]
        return llguidance.LLTokenizer(self.tokenizer.to_json(), n_vocab=self.vocab_size, eos_token=known)

    def _compile(self, text: str, language: str) -> Any:
        vocabulary = self._vocabulary
        matchers = require("llguidance", "serve", "response formats of the local engine").LLMatcher
        try:
            if language == "lark":
                grammar = matchers.grammar_from_lark(text)
            else:
                grammar = matchers.grammar_from_json_schema(text, defaults=SPACING)
            matcher = matchers(vocabulary, grammar)
            problem = matcher.get_error() if matcher.is_error() else ""
        except ValueError as error:
            problem = str(error)
        if problem:
            param = "response_format" if language == "schema" else "tools"
            short = " ".join(str(problem).split())[:200]
            raise RequestError(f"{param}: this JSON Schema cannot bind a reply: {short}", param=param)
        return matcher


class Matcher:
    """Where one reply stands in its grammar."""

    def __init__(self, grammars: Grammars, matcher: Any):
        self.grammars, self._matcher = grammars, matcher

    def take(self, token_id: int) -> None:
        """The reply goes on with this token; a stop token ends it."""
        if token_id not in self.grammars.stop_ids:
            self._matcher.consume_token(token_id)

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says: the mask of each would hold it alone.

        So replies are the same with and without asking for them. Behind a complete text it is the token that ends the
        reply.
        """
        if self._matcher.is_error():
            return []
        return [self.grammars.end_id] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())

    @property
    def error(self) -> str | None:
        """Why the grammar can say nothing more: a limit of llguidance was reached."""
        return str(self._matcher.get_error()).splitlines()[0] if self._matcher.is_error() else None

    def write_mask(self, row: np.ndarray) -> None:
        """Set the bits of the tokens that may come next in `row` (words,) int32; none where the grammar failed."""
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            row[:] = 0


class Masks:
    """What the grammars of a step's rows allow next, worked out in a thread while the model computes the logits.

    Until `apply` has returned, the matchers must be left alone.
    """

    def __init__(self, matchers: Sequence[Matcher | None]):
        self.num_rows = len(matchers)
        self.rows = [row for row, matcher in enumerate(matchers) if matcher is not None]
        bound = [matcher for matcher in matchers if matcher is not None]
        grammars = bound[0].grammars
        self.vocab_size = grammars.vocab_size
        self._forbidden: Future[np.ndarray] = grammars.thread.submit(_forbidden, bound, self.vocab_size)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (rows, vocab) with -inf where a row's grammar forbids a token; rows without a grammar stay."""
        forbidden = torch.from_numpy(self._forbidden.result()).view(torch.bool)[:, : self.vocab_size].to(logits.device)
        if len(self.rows) == self.num_rows:
            return logits.masked_fill(forbidden, float("-inf"))
        logits = logits.clone()
        logits[self.rows] = logits[self.rows].masked_fill(forbidden, float("-inf"))
        return logits


def masks_of(matchers: Sequence[Matcher | None]) -> Masks | None:
    """Begin to work out the next masks of a step's rows; None when no row has a grammar."""
    return Masks(matchers) if any(matcher is not None for matcher in matchers) else None


def _forbidden(matchers: Sequence[Matcher], vocab_size: int) -> np.ndarray:
    """(rows, vocab rounded up to words) uint8: 1 where a token may not come."""
    words = np.zeros((len(matchers), -(-vocab_size // WORD)), np.int32)
    for matcher, row in zip(matchers, words, strict=True):
        matcher.write_mask(row)
    return np.unpackbits(~words.view(np.uint8), axis=1, bitorder="little")


def constrain(logits: Tensor, matchers: Sequence[Matcher | None]) -> Tensor:
    """Logits (rows, vocab) with -inf where a row's grammar forbids a token."""
    masks = masks_of(matchers)
    return logits if masks is None else masks.apply(logits)
