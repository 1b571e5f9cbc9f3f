"""Requests as they come in: encoded, checked, turned into jobs. No torch here, so a server's own process can do it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmforge.infer.local.raw import conversation_ids
from llmforge.infer.local.reply import Job
from llmforge.infer.protocol import (
    Conversation,
    GenerateRequest,
    PromptTooLong,
    RequestError,
    Sampling,
    TokenIds,
    UnknownModel,
)

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer

MOST_CANDIDATES = 64  # of contrastive search, which reads each of them


@dataclass(frozen=True)
class Limits:
    """What a model allows, as its worker found it."""

    vocab_size: int  # width of the logits
    context_length: int | None  # None: its positions have no end (ALiBi)
    stop_ids: frozenset[int]  # the template's, and those of its generation config
    capacity: int | None = None  # tokens its cache can hold; None: not limited


class Intake:
    """Makes jobs of requests.

    Args:
        served: request model name -> adapter name inside the model; None takes any name as the module as it stands.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, limits: Limits, served: dict[str, str] | None = None):
        self.tokenizer, self.template, self.limits, self.served = tokenizer, template, limits, served
        self.stop_strings = template.stop_strings(tokenizer)

    def prepare(self, request: GenerateRequest, arrived_at: float | None = None) -> Job:
        """Encode and check a request; `arrived_at` (time.monotonic()) is when its deadline began.

        Raises:
            RequestError: the request cannot be served; the message names the field.
        """
        if self.served is not None and request.model not in self.served:
            raise UnknownModel(request.model, list(self.served))
        sampling = request.sampling
        check_sampling(sampling, self.limits.vocab_size)
        if request.constraint is not None and sampling.ignore_eos:
            raise RequestError(
                "ignore_eos: a reply in a response format ends where its format does", param="ignore_eos"
            )
        prompt_ids = self._encode(request.prompt)
        arrived_at = time.monotonic() if arrived_at is None else arrived_at
        return Job(
            request,
            prompt_ids,
            self._room(len(prompt_ids), sampling),
            frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else self.limits.stop_ids),
            sampling.stop if sampling.ignore_eos else (*sampling.stop, *self.stop_strings),
            secrets.randbits(63) if sampling.seed is None else sampling.seed,
            None if self.served is None else self.served[request.model],
            None if request.deadline_s is None else arrived_at + request.deadline_s,
        )

    def _encode(self, prompt: Conversation | TokenIds) -> list[int]:
        if isinstance(prompt, TokenIds):
            ids = list(prompt.ids)
        else:
            ids = conversation_ids(self.template, self.tokenizer, prompt)
        if not ids:
            raise RequestError("the prompt is empty", param="messages")
        size = self.limits.vocab_size
        if strange := [id for id in ids if not 0 <= id < size]:
            raise RequestError(f"ids {strange[:5]} are outside the vocabulary of {size}", param="prompt")
        return ids

    def _room(self, num_prompt: int, sampling: Sampling) -> int:
        """Tokens the reply may have: the smallest of what was asked for and what is left."""
        room: list[int] = [] if sampling.max_new_tokens is None else [sampling.max_new_tokens]
        limits = (
            (sampling.max_length, "max_length"),
            (self.limits.context_length, "the model's context"),
            (self.limits.capacity, "the engine's cache"),
        )
        for limit, what in limits:
            if limit is None:
                continue
            if num_prompt >= limit:
                raise PromptTooLong(num_prompt, limit, what)
            room.append(limit - num_prompt)
        if sampling.max_new_tokens is None and sampling.max_length is None and self.limits.context_length is None:
            raise RequestError(
                "max_new_tokens is needed: this model's config names no longest context", param="max_tokens"
            )
        return min(room)


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Refuse settings without a meaning.

    Raises:
        RequestError: names the field, its value and what it may be.
    """
    rules: dict[str, tuple[bool, str]] = {
        "max_new_tokens": (sampling.max_new_tokens is None or sampling.max_new_tokens >= 1, "at least 1"),
        "max_length": (sampling.max_length is None or sampling.max_length >= 1, "at least 1"),
        "temperature": (0 <= sampling.temperature < float("inf"), "0 or more"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, at most 1"),
        "top_k": (sampling.top_k >= 0, "0 (all tokens) or more"),
        "penalty_alpha": (
            0 <= sampling.penalty_alpha <= 1 and (not sampling.penalty_alpha or 1 <= sampling.top_k <= MOST_CANDIDATES),
            f"0 to 1, and with it a top_k from 1 to {MOST_CANDIDATES}",
        ),
        "min_p": (0 <= sampling.min_p <= 1, "0 to 1"),
        "repetition_penalty": (0 < sampling.repetition_penalty < float("inf"), "above 0"),
        "n": (sampling.n >= 1, "at least 1"),
        "stop": (all(sampling.stop), "texts that are not empty"),
        "logprobs": (sampling.logprobs is None or sampling.logprobs >= 0, "0 or more"),
        "logit_bias": (all(0 <= id < vocab_size for id in sampling.logit_bias), f"token ids below {vocab_size}"),
    }
    for name, (is_fine, expected) in rules.items():
        if not is_fine:
            raise RequestError(f"{name}: got {getattr(sampling, name)!r}, expected {expected}", param=name)
