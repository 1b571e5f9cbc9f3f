"""PaddedRunner: rows of models that cannot run over blocks (Bloom, Falcon), in static left-padded batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmforge.infer.local.forward import CachedForward
from llmforge.infer.local.row import Row
from llmforge.infer.local.runner import Adapters

COMPACT_BELOW = 0.75  # share of live rows under which the ended ones leave the cache; dropping costs a copy of it


class PaddedRunner:
    """The steps of PagedRunner over one batch at a time: the next one begins when all of its rows have ended.

    Args:
        token_budget: cache places (rows x longest prompt and reply) of a batch; a single larger row still runs.
    """

    limit = None  # a row may be as long as the model reads

    def __init__(self, model: Any, adapters: Adapters, pad_id: int, *, max_rows: int, token_budget: int):
        self.model, self.adapters, self.pad_id = model, adapters, pad_id
        self.max_rows, self.token_budget = max_rows, token_budget
        self.waiting: list[Row] = []
        self._batch: list[Row] = []  # as in the cache; ended rows stay until it is compacted
        self._live: set[int] = set()
        self._longest: dict[int, int] = {}
        self._forward: CachedForward | None = None

    @property
    def rows(self) -> list[Row]:
        return [*self._running, *self.waiting]

    @property
    def _running(self) -> list[Row]:
        return [row for row in self._batch if id(row) in self._live]

    @property
    def num_running(self) -> int:
        return len(self._live)

    def add(self, row: Row, longest: int) -> None:
        self._longest[id(row)] = longest
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        self._live.discard(id(row))
        self._longest.pop(id(row), None)
        if row in self.waiting:
            self.waiting.remove(row)

    discard = remove

    def plan(self) -> list[Row]:
        """The running rows; when there are none, as many waiting ones as fit together."""
        if not self._live:
            self._forward = None
            self._batch = self._take()
            self._live = set(map(id, self._batch))
        return self._running

    def _take(self) -> list[Row]:
        order = sorted(self.waiting, key=lambda row: (not row.is_alone, -row.job.request.priority, row.order))
        batch: list[Row] = []
        for row in order:
            longest = max(self._longest[id(other)] for other in (*batch, row))
            fits = len(batch) < self.max_rows and (len(batch) + 1) * longest <= self.token_budget
            if not batch or (fits and row.adapter == batch[0].adapter and not batch[0].is_alone):
                batch.append(row)
        self.waiting = [row for row in self.waiting if row not in batch]
        return batch

    def forward(self) -> Tensor:
        """Logits (running rows, vocabulary)."""
        running = self._running
        with self.adapters.using([(running[0].adapter, 1)]):
            if self._forward is None or any(row.num_pending > 1 for row in running):
                self._forward = CachedForward(self.model, self.pad_id)
                self._batch = running
                logits = self._forward.prefill([row.tokens for row in running])
            else:
                if len(running) < COMPACT_BELOW * len(self._batch) and self._forward.can_select:
                    self._forward.select([i for i, row in enumerate(self._batch) if id(row) in self._live])
                    self._batch = running
                live = [id(row) in self._live for row in self._batch]
                last = [
                    row.tokens[-1] if is_live else self.pad_id for row, is_live in zip(self._batch, live, strict=True)
                ]
                logits = self._forward.step(last)[live]
        for row in running:
            row.num_computed = len(row.tokens)
            row.is_alone = False
        return logits

    def fail(self) -> Row | None:
        """See PagedRunner."""
        running, self._forward = self._running, None
        self._batch, self._live = [], set()
        for row in running:
            row.start_again()
            row.is_alone = True
        if len(running) == 1:
            return running[0]
        self.waiting += running
        return None

    def forget(self) -> None:
        """Nothing is kept beyond a batch."""
