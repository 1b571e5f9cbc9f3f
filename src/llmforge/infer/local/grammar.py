"""Constrained decoding: which tokens may come next so that a reply stays inside a JSON grammar, by llguidance."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmforge.errors import require
from llmforge.infer.protocol import RequestError

if TYPE_CHECKING:
    from llmforge.data.tokenizer import Tokenizer

KINDS = ("json_object", "json_schema")
CACHED = 64  # compiled grammars kept; a server's clients send the same few schemas again and again
# One way to write white space: a small model would otherwise fill its reply with blanks, which the grammar allows.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def kinds() -> frozenset[str]:
    """The constraints that can be honoured here."""
    return frozenset(KINDS) if importlib.util.find_spec("llguidance") else frozenset()


class Grammars:
    """Grammars over one vocabulary; compiling one takes milliseconds, the first one reads the vocabulary.

    Args:
        vocab_size: width of the logits.
        stop_ids: tokens that end a reply; allowed where the grammar may end.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]):
        self.tokenizer, self.vocab_size, self.stop_ids = tokenizer, vocab_size, sorted(stop_ids)
        self._compiled = functools.lru_cache(maxsize=CACHED)(self._compile)

    def begin(self, constraint: Mapping[str, Any]) -> Matcher:
        """A matcher at the start of a reply.

        Raises:
            RequestError: a kind that is unknown, or a schema with something the grammar cannot hold the reply to.
        """
        kind = constraint.get("type")
        if kind not in KINDS:
            raise RequestError(
                f"response format {kind!r} is not known; known: {', '.join(KINDS)}", param="response_format"
            )
        schema = constraint.get("schema", {}) if kind == "json_schema" else {"type": "object"}
        return Matcher(self._compiled(json.dumps(schema, ensure_ascii=False)).deep_copy(), self._allowed, self.stop_ids)

    @functools.cached_property
    def _vocabulary(self) -> Any:
        llguidance = require("llguidance", "serve", "response formats of the local engine")
        known = [id for id in self.stop_ids if id < len(self.tokenizer)]
        return llguidance.LLTokenizer(self.tokenizer.to_json(), n_vocab=self.vocab_size, eos_token=known)

    @functools.cached_property
    def _allowed(self) -> Tensor:
        """(vocab,) bool: tokens a JSON text may hold at all, so no control token but the stops."""
        allowed = torch.ones(self.vocab_size, dtype=torch.bool)
        allowed[[id for id in self.tokenizer.control_ids if id < self.vocab_size]] = False
        allowed[[id for id in self.stop_ids if id < self.vocab_size]] = True
        return allowed

    def _compile(self, schema: str) -> Any:
        vocabulary = self._vocabulary
        llguidance = require("llguidance", "serve", "response formats of the local engine")
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=SPACING)
            matcher = llguidance.LLMatcher(vocabulary, grammar)
            problem = matcher.get_error() if matcher.is_error() else ""
        except ValueError as error:
            problem = str(error)
        if problem:
            text = " ".join(str(problem).split())[:200]
            raise RequestError(
                f"response_format: this JSON Schema cannot bind a reply: {text}", param="response_format"
            )
        return matcher


class Matcher:
    """Where one reply stands in its grammar."""

    def __init__(self, matcher: Any, allowed: Tensor, stop_ids: Sequence[int]):
        self._matcher, self._allowed = matcher, allowed
        self._stop_ids = frozenset(stop_ids)

    def mask(self) -> Tensor:
        """(vocab,) bool: tokens that may come next."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        places = torch.arange(8, dtype=torch.uint8)
        mask = ((bits[:, None] >> places) & 1).bool().flatten()[: len(self._allowed)]
        return mask & self._allowed

    def take(self, token_id: int) -> None:
        """The reply goes on with this token; a stop token ends it."""
        if token_id not in self._stop_ids:
            self._matcher.consume_token(token_id)


def constrain(logits: Tensor, matchers: Sequence[Matcher | None]) -> Tensor:
    """Logits (rows, vocab) with -inf where a row's grammar forbids a token; rows without a matcher stay."""
    if not any(matchers):
        return logits
    logits = logits.clone()
    for row, matcher in enumerate(matchers):
        if matcher is not None:
            logits[row].masked_fill_(~matcher.mask().to(logits.device), float("-inf"))
    return logits
