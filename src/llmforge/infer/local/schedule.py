"""Which rows a step computes: everything that decodes, and a chunk of prompts, as far as blocks last. No torch.

Rows are admitted in the order of priority and arrival, when the cache has room for all their tokens and a spare block
for every row that runs. A row that needs a block when none is left takes it from the row that came last, which waits
again and is computed again later.

When many requests come at once, the last of them waits for all prompts before its own, and then writes its reply in
steps that read the prompts of those who came later. Where many wait, some steps read none for its sake.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from llmforge.infer.local.blocks import BlockPool
from llmforge.infer.local.drafts import Drafting
from llmforge.infer.local.row import Row

READS = 2  # steps with prompts before one without, where more rows wait than are written


@dataclass(frozen=True)
class Part:
    """What one step computes of a row: `tokens[start : start + count]`, and the row's draft behind them."""

    row: Row
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def num_read(self) -> int:
        """Tokens that the step reads, the draft included."""
        return self.count + len(self.row.draft)

    @property
    def is_due(self) -> bool:
        """Whether the row's next token is chosen after this step."""
        return self.end == len(self.row.tokens)


class Schedule:
    """Rows that wait and rows that run over one pool.

    Args:
        max_rows: rows that run together.
        chunk: tokens computed per step, of which prompts have what the replies leave, and at least half: so a long
            prompt does not stop the replies of others, nor do they stop it.
        mixes: whether rows of several adapters may share a step.
        draft_price: what a step of one row loses by a drafted token that was wrong, as a share of what it gains by a
            right one; that of more rows is as many times as high.
    """

    def __init__(self, pool: BlockPool, max_rows: int, chunk: int, mixes: bool, draft_price: float):
        self.pool, self.max_rows, self.chunk, self.mixes = pool, max_rows, chunk, mixes
        self.draft_price, self.drafting = draft_price, Drafting()
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self.num_preempted = 0  # rows since start; what follows are tokens
        self.num_looked_up = self.num_found = self.num_computed = 0
        self.copies: list[tuple[int, int]] = []  # blocks whose content the next step's rows begin with: (from, to)
        self._fresh: list[int] = []  # blocks published by the last step
        self._last_turn: dict[str | None, int] = {}  # adapter -> step it was last part of
        self._steps = itertools.count()
        self._steps_with_prompts = 0  # one after the other, until now

    def add(self, row: Row) -> None:
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """A row that has ended or was given up; its blocks are free, their text stays known."""
        (self.running if row in self.running else self.waiting).remove(row)
        self._drop_blocks(row)

    def next(self) -> list[Part]:
        """The next step's parts, decoding rows first. Empty when there is nothing to do."""
        self._fresh, self.copies = [], []
        self.waiting.sort(key=lambda row: (not row.is_alone, -row.job.request.priority, row.order))
        if suspect := next((row for row in (*self.running, *self.waiting) if row.is_alone), None):
            self._preempt_all_but(suspect)
            candidates = [suspect]
        else:
            candidates = [*self.running, *self.waiting]
        if not self.mixes:
            candidates = self._of_one_adapter(candidates)
        chosen = set(map(id, candidates))
        for row in [row for row in self.running if row.has_drawn and id(row) in chosen]:
            if row in self.running:  # one before it may have taken its blocks
                self._make_room(row)
        decoding = [row for row in self.running if row.has_drawn and id(row) in chosen]
        parts = [self._part(row, row.num_pending) for row in decoding]
        self._draft(decoding)
        # Who has waited longest comes to its end sooner; those behind it, whose turn has not come, lose little.
        rests = self._steps_with_prompts >= READS and len(self.waiting) > len(decoding) > 0
        num_read = sum(part.num_read for part in parts)
        budget = 0 if rests else max(self.chunk - num_read, self.chunk // 2)
        for row in [row for row in self.running if not row.has_drawn and id(row) in chosen]:
            if budget > 0:
                self._find_more(row)
                parts.append(self._part(row, min(row.num_pending, budget)))
                budget -= parts[-1].count
        for row in [row for row in self.waiting if id(row) in chosen]:
            if budget <= 0 or len(self.running) >= self.max_rows or not self._admit(row):
                break
            parts.append(self._part(row, min(row.num_pending, budget)))
            budget -= parts[-1].count
        self._steps_with_prompts = self._steps_with_prompts + 1 if len(parts) > len(decoding) else 0
        return parts

    def done(self, parts: list[Part]) -> None:
        """The step was computed."""
        for part in parts:
            part.row.num_computed = part.end
            self.num_computed += part.count
            if part.is_due:
                part.row.is_alone = False

    def failed(self, parts: list[Part]) -> None:
        """The step was not computed: what it promised is taken back, and its rows wait to be tried one by one."""
        self.pool.retract(self._fresh)
        for part in parts:
            part.row.is_alone = True
        for row in list(self.running):  # others may hold blocks of the failed step
            self.preempt(row)

    def discard_text(self, row: Row) -> list[int]:
        """Nobody shall share what this row computed; returns the blocks it alone holds."""
        own = self.pool.only_held_once(row.blocks)
        self.pool.retract(own)
        return own

    def take_over(self, other: Schedule) -> None:
        """Go on with the waiting rows and the counts of a schedule over another pool."""
        self.waiting = other.waiting
        self.num_preempted = other.num_preempted
        self.num_looked_up, self.num_found = other.num_looked_up, other.num_found
        self.num_computed, self.drafting = other.num_computed, other.drafting

    # --- blocks ---

    def _part(self, row: Row, count: int) -> Part:
        """Publish what the step will have filled, so that rows behind it in the same step can share it."""
        size, end = self.pool.block_size, row.num_computed + count
        while (row.num_published + 1) * size <= end:
            first = row.num_published * size
            block = row.blocks[row.num_published]
            row.place = self.pool.publish(row.place, row.tokens[first : first + size], block)
            row.num_published += 1
            self._fresh.append(block)
        return Part(row, row.num_computed, count)

    def _admit(self, row: Row) -> bool:
        """Give a waiting row blocks for all of its tokens, shared ones where its start is known."""
        root = ("adapter", row.adapter)
        found, place = self.pool.find(root, row.tokens[:-1])  # the last token is computed, for its logits
        missing = self.pool.blocks_for(len(row.tokens)) - len(found)
        spare = len(self.running)
        if self.pool.num_available - self.pool.num_idle(found) < missing + spare:
            return False
        row.num_computed = len(found) * self.pool.block_size
        near, num_alike = self.pool.find_start(place, row.tokens[row.num_computed : -1])
        self.pool.hold(found)
        row.blocks = found + (self.pool.take(missing) or [])
        row.place, row.num_published = place, len(found)
        if num_alike and near not in self._fresh:  # what is fresh is there only after the step
            self.copies.append((near, row.blocks[len(found)]))
            row.num_computed += num_alike
        if not row.reply.token_ids:
            row.num_cached = row.num_computed
            self.num_looked_up += len(row.tokens)
            self.num_found += row.num_computed
        self.waiting.remove(row)
        self.running.append(row)
        return True

    def _find_more(self, row: Row) -> None:
        """Between two chunks of a prompt: another row may have computed more of the same text meanwhile."""
        size = self.pool.block_size
        if row.num_computed != row.num_published * size:
            return
        found, place = self.pool.find(row.place, row.tokens[row.num_computed : -1])
        if found:
            self.pool.hold(found)
            end = row.num_published + len(found)
            self.pool.release(row.blocks[row.num_published : end])
            row.blocks[row.num_published : end] = found
            row.place, row.num_published, row.num_computed = place, end, end * size

    def _make_room(self, row: Row) -> None:
        """Blocks for the row's pending tokens, if need be those of the row that matters least, which may be itself."""
        missing = self.pool.blocks_for(len(row.tokens)) - len(row.blocks)
        while missing > 0 and row in self.running:
            taken = self.pool.take(missing)
            if taken is not None:
                row.blocks += taken
                return
            self.preempt(max(self.running, key=lambda other: (-other.job.request.priority, other.order)))

    def _draft(self, decoding: list[Row]) -> None:
        """Let rows that decode read tokens on trial, all of them as many, so that their attention is one even call."""
        price, chosen = len(decoding) * self.draft_price, []
        for row in decoding:
            if row.drafter is None:
                row.drafter = self.drafting.begin(row.job)
            if row.drafter is not None and not row.is_alone and (count := row.drafter.worth(row.tokens, price)):
                chosen.append((row, row.drafter, count))
        if not chosen:
            return
        length = round(sum(count for _, _, count in chosen) / len(chosen))
        length = min(length, self.chunk // 2 // len(decoding) - 1)  # else rows without luck wait for long steps
        for row, drafter, _ in chosen:
            most = row.job.max_new_tokens - len(row.reply.token_ids) - 1  # the step itself decides one more
            row.draft = drafter.draft(row.tokens, max(0, min(length, most)))
            self._trim_to_room(row)

    def _trim_to_room(self, row: Row) -> None:
        """Blocks for a row's draft that nobody else needs, or a shorter draft."""
        missing = self.pool.blocks_for(len(row.tokens) + len(row.draft)) - len(row.blocks)
        if missing > 0 and self.pool.num_available - missing >= len(self.running):
            row.blocks += self.pool.take(missing) or []
        del row.draft[len(row.blocks) * self.pool.block_size - len(row.tokens) :]

    def preempt(self, row: Row) -> None:
        """A running row gives its blocks back and waits again."""
        self.num_preempted += 1
        self.running.remove(row)
        self._drop_blocks(row)
        self.waiting.append(row)

    def _preempt_all_but(self, row: Row) -> None:
        for other in [other for other in self.running if other is not row]:
            self.preempt(other)

    def _drop_blocks(self, row: Row) -> None:
        self.pool.release(row.blocks)
        row.start_again()

    def _of_one_adapter(self, rows: list[Row]) -> list[Row]:
        """The rows of the adapter whose turn is longest ago."""
        if not rows:
            return rows
        adapter = min((row.adapter for row in rows), key=lambda name: self._last_turn.get(name, -1))
        self._last_turn[adapter] = next(self._steps)
        return [row for row in rows if row.adapter == adapter]
