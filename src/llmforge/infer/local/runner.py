"""PagedRunner: steps of many rows through an unmodified model, keys and values in shared blocks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from llmforge.infer.local.blocks import BlockPool
from llmforge.infer.local.live import base_of, free_bytes
from llmforge.infer.local.packed import filled_up, is_packed
from llmforge.infer.local.paged import BLOCK_SIZE, KeyValues, PagedStep, Span, Wanted, paged_attention
from llmforge.infer.local.row import Row
from llmforge.infer.local.schedule import Part, Schedule

log = logging.getLogger(__name__)
# Tokens per step: on a CPU for each thread, a third of a second of a core (135M model). Packed products are at their
# best speed from 64 rows on, and the fewer a step reads, the more evenly prompts and replies take turns.
CPU_CHUNK = 128
GPU_CHUNK = 2048
# What a token more costs a step, as a share of what a step costs besides its tokens (weights that are read, calls), of
# one thread or a device. On a CPU 1.9 ms of 48 for two threads of an AMD EPYC (135M Llama in fp32), and twice as much
# here, because a step is saved only when most of its rows are lucky: at 32 clients 1.06 times the requests of the price
# without it, at 8 the same. That of a GPU is reckoned from the speed of its memory and products; none was measured.
CPU_TOKEN_COST = 1 / 6
GPU_TOKEN_COST = 1 / 128
LAYERS = {"full_attention", "sliding_attention", "attention"}
MEMORY_SHARE = {"cpu": 0.5}  # of what is free, that the cache may grow to
GPU_MEMORY_SHARE = 0.85
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}  # relative to the largest logit
LOW_PRECISION_TOLERANCE = 5e-2


class Adapters(Protocol):
    """Which adapter each token of a forward pass runs with."""

    can_mix: bool  # whether a pass may hold several

    def using(
        self, rows: Sequence[tuple[str | None, int]], head_rows: Sequence[tuple[str | None, int]] | None = None
    ) -> AbstractContextManager[None]:
        """(adapter, number of tokens) along the flat line; "" is the base, None the module as it stands.

        `head_rows` says the same of the tokens that reach the output head, where these are fewer.
        """
        ...


class PagedRunner:
    """Rows over one model and one pool of blocks.

    Args:
        token_budget: places of the cache; less where the memory is short, more for a single row that needs it.
        trial: a small cache of this model, as `measure` makes it.
    """

    def __init__(self, model: Any, adapters: Adapters, trial: KeyValues, *, max_rows: int, token_budget: int):
        self.model, self.adapters = model, adapters
        base = base_of(model)
        self.device = base.get_input_embeddings().weight.device
        self.trial, self.bytes_per_token = trial, trial.bytes_per_token
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        share = MEMORY_SHARE.get(self.device.type, GPU_MEMORY_SHARE)
        self.free = int(free_bytes(self.device) * share / self.bytes_per_token)  # tokens that there is memory for
        self.limit = max(BLOCK_SIZE, self.free)  # tokens that one row may have
        self.max_rows = max_rows
        self._is_packed = is_packed(base)
        self.chunk: int | None = None  # tokens per step; None: what the device and its threads are good at
        self._parts: list[Part] = []
        self._make_pool(min(token_budget, self.limit))

    def _make_pool(self, num_tokens: int) -> None:
        self.pool = BlockPool(-(-num_tokens // BLOCK_SIZE), BLOCK_SIZE)
        self.cache = KeyValues(self.pool.num_blocks)
        self.schedule = Schedule(self.pool, self.max_rows, GPU_CHUNK, self.adapters.can_mix, GPU_TOKEN_COST)

    def resize(self, num_tokens: int) -> None:
        """Have room for so many tokens and no more; nothing may be running."""
        self.limit = max(BLOCK_SIZE, num_tokens)
        self._make_pool(self.limit)

    @property
    def capacity(self) -> int:
        """Tokens the pool has room for."""
        return self.pool.num_blocks * BLOCK_SIZE

    @property
    def rows(self) -> list[Row]:
        return [*self.schedule.running, *self.schedule.waiting]

    @property
    def num_running(self) -> int:
        return len(self.schedule.running)

    def add(self, row: Row, longest: int) -> None:
        """A row that may grow to `longest` tokens, at most `limit`; a pool that is too small is made anew."""
        if longest > self.capacity:
            before = self.schedule
            for other in list(before.running):
                before.preempt(other)
            self._make_pool(longest)
            self.schedule.take_over(before)
        self.schedule.add(row)

    def remove(self, row: Row) -> None:
        self.schedule.remove(row)

    def discard(self, row: Row) -> None:
        """Remove a row whose cache holds what is no number."""
        own = self.schedule.discard_text(row)
        self.schedule.remove(row)
        self.cache.clear(own)

    def plan(self) -> list[Row]:
        """Choose the next step; the rows whose next token it decides."""
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            self.schedule.chunk, self.schedule.draft_price = CPU_CHUNK * threads, CPU_TOKEN_COST / threads
        self.schedule.chunk = self.chunk or self.schedule.chunk
        # One adapter's rows lie side by side, so that it is applied to a stretch of the line; among them those that are
        # attended together, so that they need not be gathered.
        self._parts = sorted(self.schedule.next(), key=lambda part: (part.row.adapter or "", part.num_read, part.start))
        return [part.row for part in self._parts if part.is_due]

    def forward(self) -> Tensor:
        """Compute the planned step.

        Returns:
            Logits (places, vocabulary): of each row of `plan` the one behind its tokens, and those behind its draft's.
        """
        spans: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        due: list[int] = []
        due_spans: list[Span] = []
        at = 0
        for part in self._parts:
            spans.append(Span(at, part.start, part.num_read, part.row.blocks))
            ids += part.row.tokens[part.start : part.end] + part.row.draft
            positions += range(part.start, part.start + part.num_read)
            at += part.num_read
            if part.is_due:
                count = 1 + len(part.row.draft)
                due_spans.append(Span(len(due), part.start + part.num_read - count, count, part.row.blocks))
                due += range(at - count, at)
        tokens = [(part.row.adapter, part.num_read) for part in self._parts]
        if self._is_packed and (rest := filled_up(at) - at):  # else each product would fill up its own
            ids += [0] * rest
            positions += [0] * rest
            tokens.append((tokens[-1][0], rest))
        self.cache.copy(self.schedule.copies)
        step = PagedStep.of(self.cache, spans, self.device, len(ids))
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids], device=self.device), "use_cache": False}
        inputs["position_ids"] = torch.tensor([positions], device=self.device)
        keep = torch.tensor(due or [0], device=self.device)
        if self._keeps_logits:
            inputs["logits_to_keep"] = keep
            if 0 < len(due) < at:
                step.wanted = Wanted(keep, due_spans)
        last = [(part.row.adapter, 1 + len(part.row.draft)) for part in self._parts if part.is_due]
        last = last or [(tokens[0][0], 1)]
        with paged_attention(self.model, step), self.adapters.using(tokens, last if self._keeps_logits else None):
            logits: Tensor = self.model(**inputs).logits[0]
        self.schedule.done(self._parts)
        return (logits if self._keeps_logits else logits[keep])[: len(due)]

    def fail(self) -> Row | None:
        """The planned step could not be computed: the row that is to blame, or None when each has to be tried alone."""
        parts, self._parts = self._parts, []
        if len(parts) == 1:
            self.discard(parts[0].row)
            return parts[0].row
        self.schedule.failed(parts)
        return None

    def forget(self) -> None:
        """The weights have changed: nothing computed before may be shared."""
        self.pool.forget()


def measure(model: Any) -> tuple[KeyValues, str | None]:
    """A small cache of a model, and None; or the reason why the model cannot run over blocks.

    It can when a short text, cut into pieces and computed beside another one, gets the logits of the model's own
    forward pass.
    """
    from llmforge.model.attention import supports_forest

    base, cache = base_of(model), KeyValues(6)
    config = base.config.get_text_config()
    if reason := supports_forest(base):
        return cache, reason
    kinds = set(getattr(config, "layer_types", None) or ())
    if strange := sorted(kinds - LAYERS):
        return cache, f"{type(base).__name__} has layers of kind {strange[0]}"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return cache, f"{type(base).__name__} takes no position_ids"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return cache, "its adapter puts tokens of its own before the prompt"
    device = base.get_input_embeddings().weight.device
    texts = [[(7 * i * i + 3 * i + 5) % config.vocab_size for i in range(n, n + 24)] for n in (0, 100)]
    pieces = [[(0, 0, 18), (1, 0, 21)], [(0, 18, 24), (1, 21, 22)], [(1, 22, 24)]]  # (text, from, to)
    last: dict[int, Tensor] = {}
    for step in pieces:
        spans, at = [], 0
        for text, start, end in step:
            spans.append(Span(at, start, end - start, [1 + 3 * text, 2 + 3 * text]))
            at += end - start
        ids = [id for text, start, end in step for id in texts[text][start:end]]
        places = [place for _, start, end in step for place in range(start, end)]
        inputs = {name: torch.tensor([x], device=device) for name, x in (("input_ids", ids), ("position_ids", places))}
        with paged_attention(model, PagedStep.of(cache, spans, device)):
            logits = model(**inputs, use_cache=False).logits[0]
        for span, (text, _, _) in zip(spans, step, strict=True):
            last[text] = logits[span.at + span.count - 1]
    tolerance = TOLERANCE.get(last[0].dtype, LOW_PRECISION_TOLERANCE)
    for number, whole in enumerate(texts):
        own = model(input_ids=torch.tensor([whole], device=device), use_cache=False).logits[0, -1]
        scale = float(own.nan_to_num().abs().max())
        if not torch.allclose(own, last[number], rtol=0, atol=tolerance * scale, equal_nan=True):
            return cache, f"{type(base).__name__} gives other logits over blocks than by itself"
    if len(cache.layers) < config.num_hidden_layers:
        return cache, f"{type(base).__name__} has layers without attention"
    return cache, None
