"""LocalCore: generation in this process over a live model, in static batches with a key-value cache."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmforge.errors import RecipeError
from llmforge.infer.local.forward import CachedForward
from llmforge.infer.local.grammar import Grammars, Matcher, constrain
from llmforge.infer.local.grammar import kinds as grammar_kinds
from llmforge.infer.local.live import base_of, context_length, evaluating, model_stop_ids, using_adapter
from llmforge.infer.local.reply import GrowingReply, Job, Reply
from llmforge.infer.local.sampler import Sampler
from llmforge.infer.local.text import ReplyText, StopStrings, TextStream
from llmforge.infer.protocol import (
    Capabilities,
    Conversation,
    GenerateRequest,
    Piece,
    PromptTooLong,
    RequestError,
    Sampling,
    TokenIds,
    UnknownModel,
    Usage,
)

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer

CONTEXT = 8  # last prompt tokens that decide how a continued text begins: a leading space, bytes of one character
COMPACT_BELOW = 0.75  # share of live rows under which the ended ones leave the cache; dropping costs a copy of it


class LocalCore:
    """Synchronous generation over a transformers or PEFT model; one call at a time.

    Args:
        served: request model name -> PEFT adapter name, "" for the base without adapters. Without it, requests run
            on the module as it stands, whatever name they carry.
        max_rows: replies decoded together.
        token_budget: cache places (rows x longest prompt and reply) of a batch; a single larger request still runs.
        skip_special: leave control tokens out of the text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        template: Template,
        *,
        served: Mapping[str, str] | None = None,
        max_rows: int = 32,
        token_budget: int = 32768,
        skip_special: bool = True,
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.served = dict(served) if served is not None else None
        self.max_rows, self.token_budget, self.skip_special = max_rows, token_budget, skip_special
        self.context_length = context_length(model)
        self.stop_strings = template.stop_strings(tokenizer)
        self.stop_ids = frozenset([*template.stop_ids(tokenizer), *model_stop_ids(model)])
        self.vocab_size = base_of(model).get_input_embeddings().weight.shape[0]
        self.grammars = Grammars(tokenizer, self.vocab_size, sorted(self.stop_ids))

    def capabilities(self) -> Capabilities:
        names = frozenset(field.name for field in dataclasses.fields(Sampling)) - {"penalty_alpha"}
        return Capabilities(names, grammar_kinds(), tokenize=True, max_running=self.max_rows)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Piece]]:
        """(request number, piece) as they come. A request that cannot run gets one piece with its error."""
        jobs: dict[int, Job] = {}
        for number, request in enumerate(requests):
            try:
                jobs[number] = self.prepare(request)
            except RecipeError as error:
                yield number, Piece(0, (), "", finish_reason="error", usage=Usage(0, 0), error=str(error))
        numbers = list(jobs)
        for batch in self.plan([jobs[number] for number in numbers]):
            for place, piece in self.run([jobs[numbers[i]] for i in batch]):
                yield numbers[batch[place]], piece

    def generate_all(self, requests: Sequence[GenerateRequest]) -> list[list[Reply]]:
        """The whole replies of each request, n of them."""
        pieces: list[dict[int, list[Piece]]] = [{} for _ in requests]
        for number, piece in self.generate(requests):
            pieces[number].setdefault(piece.index, []).append(piece)
        return [[Reply.of(parts[index]) for index in sorted(parts)] for parts in pieces]

    def prepare(self, request: GenerateRequest, arrived_at: float | None = None) -> Job:
        """Encode and check a request; `arrived_at` (time.monotonic()) is when its deadline began.

        Raises:
            RequestError: the request cannot be served; the message names the field.
        """
        if self.served is not None and request.model not in self.served:
            raise UnknownModel(request.model, list(self.served))
        check_sampling(request.sampling, self.vocab_size)
        sampling = request.sampling
        if request.constraint is not None:
            if sampling.ignore_eos:
                raise RequestError(
                    "ignore_eos: a reply in a response format ends where its format does", param="ignore_eos"
                )
            self.grammars.begin(request.constraint)  # so that a schema that cannot be kept is refused now
        prompt_ids = self._encode(request.prompt)
        arrived_at = time.monotonic() if arrived_at is None else arrived_at
        return Job(
            request,
            prompt_ids,
            self._room(len(prompt_ids), sampling),
            frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else self.stop_ids),
            sampling.stop if sampling.ignore_eos else (*sampling.stop, *self.stop_strings),
            secrets.randbits(63) if sampling.seed is None else sampling.seed,
            None if self.served is None else self.served[request.model],
            None if request.deadline_s is None else arrived_at + request.deadline_s,
        )

    def _encode(self, prompt: Conversation | TokenIds) -> list[int]:
        if isinstance(prompt, TokenIds):
            ids = list(prompt.ids)
        else:
            try:
                encoded = self.template.encode(
                    self.tokenizer, prompt.messages, prompt.tools, add_generation_prompt=True
                )
            except RecipeError as error:
                raise RequestError(str(error), param="messages", code="invalid_messages") from None
            ids = list(encoded.input_ids)
        if not ids:
            raise RequestError("the prompt is empty", param="messages")
        if strange := [id for id in ids if not 0 <= id < self.vocab_size]:
            raise RequestError(f"ids {strange[:5]} are outside the vocabulary of {self.vocab_size}", param="prompt")
        return ids

    def _room(self, num_prompt: int, sampling: Sampling) -> int:
        """Tokens the reply may have: the smallest of what was asked for and what is left."""
        room: list[int] = [] if sampling.max_new_tokens is None else [sampling.max_new_tokens]
        for limit, what in ((sampling.max_length, "max_length"), (self.context_length, "the model's context")):
            if limit is None:
                continue
            if num_prompt >= limit:
                raise PromptTooLong(num_prompt, limit, what)
            room.append(limit - num_prompt)
        if not room:
            raise RequestError(
                "max_new_tokens is needed: this model's config names no longest context", param="max_tokens"
            )
        return min(room)

    def plan(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Positions of jobs that run together: one adapter, similar lengths, within rows and budget.

        The longest come first, so that a batch too large for the memory fails at once and not after an hour.
        """
        order = sorted(range(len(jobs)), key=lambda i: (jobs[i].adapter or "", -len(jobs[i].prompt_ids), i))
        batches: list[list[int]] = []
        for i in order:
            if not batches or not self.fits([jobs[j] for j in batches[-1]], jobs[i]):
                batches.append([])
            batches[-1].append(i)
        return batches

    def fits(self, batch: Sequence[Job], job: Job) -> bool:
        """Whether `job` may join a batch that is not empty."""
        together = [*batch, job]
        rows = sum(other.num_rows for other in together)
        longest = max(len(other.prompt_ids) for other in together) + max(other.max_new_tokens for other in together)
        return batch[0].adapter == job.adapter and rows <= self.max_rows and rows * longest <= self.token_budget

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Piece]]:
        """Decode one batch of jobs with one adapter; (position in `jobs`, piece) as they come."""
        replies = [
            GrowingReply(number, job, index, self._text(job), self.tokenizer, self.template, self._matcher(job))
            for number, job in enumerate(jobs)
            for index in range(job.num_rows)
        ]
        remaining = [job.num_rows for job in jobs]
        num_tokens = [0] * len(jobs)
        with evaluating(self.model), using_adapter(self.model, jobs[0].adapter):
            for reply, piece in self._decode(replies):
                number = reply.number
                if piece.finish_reason is not None:
                    remaining[number] -= 1
                    num_tokens[number] += len(reply.token_ids)
                    if not remaining[number]:
                        usage = Usage(len(jobs[number].prompt_ids), num_tokens[number])
                        piece = dataclasses.replace(piece, usage=usage)
                yield number, piece

    def _matcher(self, job: Job) -> Matcher | None:
        return None if job.request.constraint is None else self.grammars.begin(job.request.constraint)

    def _text(self, job: Job) -> ReplyText:
        prompt = job.request.prompt
        chat = prompt if isinstance(prompt, Conversation) else None
        continues = chat is not None and bool(chat.messages) and chat.messages[-1].role == "assistant"
        # Some tool syntaxes mark calls with control tokens, which the reader of the reply needs.
        skip_special = self.skip_special and not job.has_tools
        return ReplyText(
            TextStream(
                self.tokenizer, context=job.prompt_ids[-CONTEXT:] if continues else (), skip_special=skip_special
            ),
            StopStrings(job.stop),
            lead="" if continues else self.template.lead,
        )

    def _decode(self, replies: list[GrowingReply]) -> Iterator[tuple[GrowingReply, Piece]]:
        """The decoding loop: choose, report, drop what has ended, step."""
        yield from _interrupted(replies)
        rows = [reply for reply in replies if not reply.ended]
        if not rows:
            return
        pad_id = self.tokenizer.pad_id or 0
        forward = CachedForward(self.model, pad_id)
        logits = _prefill(forward, [reply.job.prompt_ids for reply in rows])
        sampler = Sampler([reply.draw for reply in rows], logits.shape[-1], logits.device)
        while True:
            logits = constrain(logits, [reply.matcher if not reply.ended else None for reply in rows])
            choices = sampler.choose(logits, [len(reply.token_ids) for reply in rows])
            for reply, choice in zip(rows, choices, strict=True):
                if not reply.ended and (piece := reply.take(choice)) is not None:
                    yield reply, piece
            yield from _interrupted(rows)
            live = [place for place, reply in enumerate(rows) if not reply.ended]
            if not live:
                return
            if len(live) < COMPACT_BELOW * len(rows) and forward.can_select:
                forward.select(live)
                sampler.select(live)
                rows = [rows[place] for place in live]
            logits = forward.step([pad_id if reply.ended else reply.token_ids[-1] for reply in rows])


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


def _prefill(forward: CachedForward, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits after each prompt; equal prompts (n replies to one) are computed once."""
    different = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    if len(different) == len(prompts) or not forward.can_select:
        return forward.prefill(prompts)
    logits = forward.prefill(different)
    rows = [different.index(tuple(prompt)) for prompt in prompts]
    forward.select(rows)
    return logits[rows]


def _interrupted(replies: Sequence[GrowingReply]) -> Iterator[tuple[GrowingReply, Piece]]:
    """Last pieces of replies whose request was cancelled or ran out of time."""
    for reply in replies:
        if not reply.ended and (piece := reply.interrupted()) is not None:
            yield reply, piece
