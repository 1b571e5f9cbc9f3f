"""LocalCore: generation in this process over a live model, many replies at a time."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmforge.errors import RecipeError
from llmforge.infer.local.draw import Choice
from llmforge.infer.local.grammar import Grammars, Masks, Matcher, masks_of
from llmforge.infer.local.grammar import kinds as grammar_kinds
from llmforge.infer.local.intake import Intake, Limits
from llmforge.infer.local.live import PeftAdapters, base_of, context_length, evaluating, model_stop_ids
from llmforge.infer.local.messages import CoreStats
from llmforge.infer.local.padded import PaddedRunner
from llmforge.infer.local.reply import GrowingReply, Job, Reply
from llmforge.infer.local.row import Row
from llmforge.infer.local.runner import Adapters, PagedRunner, measure
from llmforge.infer.local.sampler import Sampler
from llmforge.infer.local.searches import Searches
from llmforge.infer.local.text import ReplyText, StopStrings, TextStream
from llmforge.infer.local.verify import Verdicts
from llmforge.infer.protocol import Capabilities, Conversation, GenerateRequest, Piece, Sampling, Usage

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)
# Of keys and values in a server, unless its recipe says otherwise: room for so many tokens, and for a whole context of
# each worker, but no more bytes than this.
CACHE_TOKENS = 16384
CACHE_BYTES = 4 * 10**9
CONTEXT = 8  # last prompt tokens that decide how a continued text begins: a leading space, bytes of one character


@dataclass
class _Progress:
    """What is left of a job."""

    remaining: int  # replies
    num_tokens: int = 0
    num_cached: int = 0


class LocalCore:
    """Synchronous generation over a transformers or PEFT model; one call at a time.

    Args:
        served: request model name -> adapter name inside the model, "" for the base. Without it, requests run on the
            module as it stands, whatever name they carry.
        max_rows: replies decoded together.
        token_budget: places of the key-value cache; less where memory is short, more for one reply that needs it.
        skip_special: leave control tokens out of the text.
        adapters: how a pass runs with the adapters of its rows; a PeftModel's own, one at a time, unless given.
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
        adapters: Adapters | None = None,
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.served = dict(served) if served is not None else None
        self.max_rows, self.token_budget, self.skip_special = max_rows, token_budget, skip_special
        self.adapters = adapters
        self.context_length = context_length(model)
        embedding = base_of(model).get_input_embeddings().weight
        self.vocab_size, self.device, self.dtype = embedding.shape[0], embedding.device, embedding.dtype
        self.stop_ids = frozenset([*template.stop_ids(tokenizer), *model_stop_ids(model)])
        self.grammars = Grammars(tokenizer, self.vocab_size, sorted(self.stop_ids), template)
        self._runner: PagedRunner | PaddedRunner | None = None
        self._searches = Searches(tokenizer.pad_id or 0)
        self._sampler = Sampler([], self.vocab_size, self.device)
        self._drawn: list[Row | None] = []  # the sampler's rows, in its order; None: not up to date
        self._progress: dict[int, _Progress] = {}  # by id of the job
        self._orders = itertools.count()
        self._prompt_tokens = self._completion_tokens = self._steps = 0

    # --- whole requests ---

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Piece]]:
        """(request number, piece) as they come. A request that cannot run gets one piece with its error."""
        jobs: list[Job] = []
        numbers: dict[int, int] = {}
        refused: list[tuple[int, Piece]] = []
        with evaluating(self.model):
            for number, request in enumerate(requests):
                try:
                    job = self.prepare(request)
                    self.submit(job)
                except RecipeError as error:
                    piece = Piece(0, (), "", finish_reason="error", usage=Usage(0, 0), error=str(error))
                    refused.append((number, piece))
                else:
                    jobs.append(job)
                    numbers[id(job)] = number
            yield from refused
            try:
                while not self.is_idle:
                    for job, piece in self.step():
                        yield numbers[id(job)], piece
            finally:  # also when the caller wants no more
                for job in jobs:
                    job.cancelled = True
                self._interrupted()

    def generate_all(self, requests: Sequence[GenerateRequest]) -> list[list[Reply]]:
        """The whole replies of each request, n of them."""
        pieces: list[dict[int, list[Piece]]] = [{} for _ in requests]
        for number, piece in self.generate(requests):
            pieces[number].setdefault(piece.index, []).append(piece)
        return [[Reply.of(parts[index]) for index in sorted(parts)] for parts in pieces]

    # --- step by step ---

    def prepare(self, request: GenerateRequest, arrived_at: float | None = None) -> Job:
        """Encode and check a request; `arrived_at` (time.monotonic()) is when its deadline began.

        Raises:
            RequestError: the request cannot be served; the message names the field.
        """
        intake = Intake(self.tokenizer, self.template, self.limits, self.served)
        job = intake.prepare(request, arrived_at)
        self.check(job)
        return job

    def check(self, job: Job) -> None:
        """What only a worker can tell about a job.

        Raises:
            RequestError: a schema that replies cannot be held to.
        """
        self._matcher(job)

    def submit(self, job: Job) -> None:
        """Let a prepared job run from the next step on; its replies share the prompt's cache."""
        runner = self._ready()
        searches = job.request.sampling.penalty_alpha > 0
        self._progress[id(job)] = _Progress(job.num_rows)
        longest = len(job.prompt_ids) + job.max_new_tokens
        for index in range(job.num_rows):
            reply = GrowingReply(0, job, index, self._text(job), self.tokenizer, self.template, self._matcher(job))
            row = Row.of(reply, next(self._orders))
            self._searches.add(row) if searches else runner.add(row, longest)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._searches.rows and (self._runner is None or not self._runner.rows)

    @torch.no_grad()
    def step(self) -> list[tuple[Job, Piece]]:
        """Let every running reply grow by a token, and prompts be read further; the pieces that came out.

        The model must be in eval mode. A row whose computation fails gets a piece with its error; others go on.
        """
        runner = self._ready()
        pieces = [*self._interrupted(), *self._search()]
        if not runner.rows:
            return pieces
        due = runner.plan()
        masks = masks_of([row.reply.matcher for row in due])  # worked out beside the forward pass
        try:
            logits = runner.forward()
        except Exception as error:
            log.exception("a step of %d rows failed", runner.num_running)
            self._drawn = []
            if (row := runner.fail()) is not None:
                pieces.append(self._counted(row, row.reply.fail(f"the model failed: {type(error).__name__}: {error}")))
            return pieces
        self._steps += 1
        if due:
            pieces += self._grow(due, logits, masks)
        return pieces

    def stats(self) -> CoreStats:
        counts = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "steps": self._steps,
        }
        runner = self._runner
        if runner is None:
            return CoreStats(0, 0, **counts)
        running = runner.num_running
        waiting = len(runner.rows) - running
        if isinstance(runner, PaddedRunner):
            return CoreStats(running, waiting, **counts)
        pool, schedule = runner.pool, runner.schedule
        return CoreStats(
            running,
            waiting,
            pool.num_blocks,
            pool.num_held,
            pool.num_cached,
            looked_up_tokens=schedule.num_looked_up,
            found_tokens=schedule.num_found,
            computed_tokens=schedule.num_computed + schedule.drafting.num_kept,
            drafted_tokens=schedule.drafting.num_drafted,
            kept_tokens=schedule.drafting.num_kept,
            preempted=schedule.num_preempted,
            **counts,
        )

    # --- the model's side ---

    @property
    def limits(self) -> Limits:
        """What requests are held to."""
        return Limits(self.vocab_size, self.context_length, self.stop_ids, self._ready().limit)

    def capabilities(self) -> Capabilities:
        names = frozenset(field.name for field in dataclasses.fields(Sampling))
        return Capabilities(names, grammar_kinds(), tokenize=True, max_running=self.max_rows)

    def replace_model(self, model: Any) -> None:
        """Go on with this form of the model, the same one with an adapter more."""
        self.model = model
        if self._runner is not None:
            self._runner.model, self._runner.adapters = model, self.adapters or PeftAdapters(model)

    def invalidate(self) -> None:
        """The weights have changed: what was computed with the old ones is forgotten."""
        if self._runner is not None:
            self._runner.forget()

    def release(self) -> None:
        """Give the cache's memory back; the next request makes it again.

        Raises:
            RuntimeError: replies are running.
        """
        if not self.is_idle:
            raise RuntimeError("the cache cannot be released while replies are running")
        self._runner = None

    def set_cache(self, num_bytes: int | None, num_workers: int = 1) -> None:
        """Limit the cache to a worker's share of so many bytes, or of what CACHE_TOKENS says, and of what is free."""
        runner = self._ready()
        if not isinstance(runner, PagedRunner):
            return
        if num_bytes is None:
            usual = max(CACHE_TOKENS, num_workers * (self.context_length or 0))
            num_tokens = min(usual, CACHE_BYTES // runner.bytes_per_token)
        else:
            num_tokens = num_bytes // runner.bytes_per_token
        runner.resize(min(num_tokens, runner.free) // num_workers)

    def take_cache(self) -> None:
        """Take the cache's memory now; else the step that first writes to a page waits for it, up to 3 ms for 2 MiB."""
        runner = self._ready()
        if isinstance(runner, PagedRunner):
            runner.cache.fill(runner.trial)

    def _ready(self) -> PagedRunner | PaddedRunner:
        """The runner; made at first use, since looking at the model takes two small forward passes."""
        if self._runner is None:
            adapters = self.adapters or PeftAdapters(self.model)
            with evaluating(self.model), torch.no_grad():
                trial, reason = measure(self.model)
            sizes = {"max_rows": self.max_rows, "token_budget": self.token_budget}
            if reason is None:
                self._runner = PagedRunner(self.model, adapters, trial, **sizes)
            else:
                log.info("replies are generated in padded batches: %s", reason)
                self._runner = PaddedRunner(self.model, adapters, self.tokenizer.pad_id or 0, **sizes)
        return self._runner

    def _grow(self, due: Sequence[Row], logits: Tensor, masks: Masks | None) -> list[tuple[Job, Piece]]:
        """Choose and take the next tokens of each row; logits (places, vocabulary) as the runner gives them."""
        verdicts = Verdicts(due, logits)
        rows, logits = self._arranged(due, verdicts.own if masks is None else masks.apply(verdicts.own))
        choices = self._sampler.choose(logits, [len(row.reply.token_ids) for row in rows])
        pieces = []
        for place, (row, first) in enumerate(zip(rows, choices, strict=True)):
            reply, known, choice = row.reply, len(row.reply.token_ids), first
            came: list[Piece | None] = []
            while not reply.ended and (choice is not None or not came):
                came.append(reply.take(choice))
                if forced := reply.forced():
                    came += [reply.take(Choice(id)) for id in forced]
                    self._drawn[place] = None  # the sampler has not seen these
                choice = None if reply.ended else verdicts.behind(row, reply.token_ids[known:])
            if first is None:
                self._ready().discard(row)
            else:
                row.append(reply.token_ids[known:])
                if reply.ended:
                    self._ready().remove(row)
            pieces += [self._counted(row, piece) for piece in came if piece is not None]
        return pieces

    def _arranged(self, due: Sequence[Row], logits: Tensor) -> tuple[list[Row], Tensor]:
        """The sampler's rows brought up to date, and their logits in its order."""
        places = {id(row): place for place, row in enumerate(due)}
        kept = [(place, row) for place, row in enumerate(self._drawn) if row is not None and id(row) in places]
        old = {id(row) for _, row in kept}
        new = [row for row in due if id(row) not in old]
        if new or len(kept) < len(self._drawn):
            self._sampler.arrange([place for place, _ in kept], [row.draw for row in new])
        rows = [*(row for _, row in kept), *new]
        self._drawn = list(rows)
        order = [places[id(row)] for row in rows]
        if order != list(range(len(due))):
            logits = logits[torch.tensor(order, device=logits.device)]
        return rows, logits

    def _interrupted(self) -> list[tuple[Job, Piece]]:
        """Last pieces of replies whose request was cancelled or ran out of time."""
        pieces = []
        for owner in (self._searches, *([self._runner] if self._runner is not None else [])):
            for row in list(owner.rows):
                if (piece := row.reply.interrupted()) is not None:
                    owner.remove(row)
                    pieces.append(self._counted(row, piece))
        return pieces

    def _search(self) -> list[tuple[Job, Piece]]:
        """One more token of every reply that is written by contrastive search."""
        pieces = []
        for row in list(self._searches.rows):
            try:
                piece = row.reply.take(self._searches.choose(row, self.model, self._ready().adapters))
            except Exception as error:
                log.exception("a contrastive search failed")
                piece = row.reply.fail(f"the model failed: {type(error).__name__}: {error}")
            if row.reply.ended:
                self._searches.remove(row)
            if piece is not None:
                pieces.append(self._counted(row, piece))
        return pieces

    def _counted(self, row: Row, piece: Piece) -> tuple[Job, Piece]:
        """The piece with its job; the last one of a job's last reply carries the usage."""
        job = row.job
        self._completion_tokens += len(piece.token_ids)
        if piece.finish_reason is None:
            return job, piece
        progress = self._progress[id(job)]
        progress.remaining -= 1
        progress.num_tokens += len(row.reply.token_ids)
        if row.reply.index == 0:
            progress.num_cached = row.num_cached
        if progress.remaining:
            return job, piece
        del self._progress[id(job)]
        self._prompt_tokens += len(job.prompt_ids)
        usage = Usage(len(job.prompt_ids), progress.num_tokens, progress.num_cached)
        return job, dataclasses.replace(piece, usage=usage)

    # --- replies ---

    def _matcher(self, job: Job) -> Matcher | None:
        constraint, prompt = job.request.constraint, job.request.prompt
        tools = prompt.tools if isinstance(prompt, Conversation) else ()
        return None if constraint is None else self.grammars.begin(constraint, tools)

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
