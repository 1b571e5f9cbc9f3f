"""Asking for rows: several workers, a budget, retries with the validator's words, decisions in the order of rows."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmforge.datagen.answer import BadAnswer
from llmforge.datagen.budget import Budget, BudgetReached, Price, Spent, count_prompt, count_tokens
from llmforge.datagen.copies import Duplicates
from llmforge.datagen.keys import TeacherConfig
from llmforge.datagen.ledger import Ledger
from llmforge.datagen.task import Task
from llmforge.datagen.teacher import Answer, Refused, Teacher, TeacherFailed
from llmforge.datagen.work import Work, end_entry
from llmforge.errors import RunError

Record = dict[str, Any]
Judge = Callable[[Task, str, str], Record]  # (task, text, finish reason) -> record, or BadAnswer
SLACK = 1.2  # on the guessed length of a prompt
TOO_MANY_FAILURES = 5  # rows in a row that no server answered
REPORT_EVERY_S = 5.0
MEND = "That answer was not accepted: {detail}\nWrite the whole answer again, as JSON only."
AGAIN = "(An earlier answer was not accepted: {detail})"
LONGEST_REPEATED = 4000  # characters of a wrong answer that are shown to the teacher again


@dataclass
class Asking:
    """One run over rows: each is asked until its answer is accepted or its tries are used up."""

    teacher: Teacher
    config: TeacherConfig
    ledger: Ledger
    work: Work
    judge: Judge
    duplicates: Duplicates | None
    seed: int
    total: int
    in_parts: bool = False  # what is asked for are parts of rows; the caller makes rows of them
    budget: Budget = field(init=False)
    stopped_by: str | None = None  # the budget's words, when it ended the run
    _failures: int = 0
    _refused: int = 0
    _any_answer: bool = False

    def __post_init__(self) -> None:
        history = self.ledger.history
        self.budget = Budget(self.config.budget_usd, self.config.budget_tokens, history.spent)
        self._any_answer = any(row.replies for row in history.rows.values())
        self._order = InOrder(self)
        self._started = self._reported = time.monotonic()
        self._done = self._done_before = sum(row.is_done for row in history.rows.values())

    async def run(self, tasks: Iterable[Task]) -> None:
        """Ask for the tasks that are not decided yet. Tasks come in the order of their index.

        Raises:
            RunError: the servers answer nothing any more, or the disk is full.
            RecipeError: a key, model or mode that the server refuses.
        """
        source = iter(tasks)
        workers = [asyncio.create_task(self._worker(source)) for _ in range(self.config.parallel)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        await self._order.flush()

    async def _worker(self, source: Iterator[Task]) -> None:
        for task in source:
            history = self.ledger.history.row(task.id)
            if history.is_done:
                await self._order.put(task.index, None)
                continue
            self._order.expect(task.index)
            if self.stopped_by is not None:
                return
            try:
                await self._row(task)
            except BudgetReached as error:
                self.stopped_by = str(error)
                return
            self._report()

    async def _row(self, task: Task) -> None:
        """Ask until the row is decided; what the ledger has of it already is not asked again."""
        history = self.ledger.history.row(task.id)
        record, cause, detail = history.passed, "", ""
        for reply in history.replies:
            cause, detail = reply["cause"] or "", reply["detail"]
        while record is None and len(history.replies) < self.config.retries and cause != "refused":
            try:
                record, cause, detail = await self._try(task, len(history.replies), detail)
            except TeacherFailed as error:
                await self._failed(task, error)
                return
        if record is None:
            await self._close(task.facts(), cause, detail)
            await self._order.put(task.index, None)
        elif self.duplicates is None:
            await self._close(record)
            await self._order.put(task.index, None)
        else:
            if history.passed is None:
                await self.ledger.append({"t": "pass", "id": task.id, "record": record})
            await self._order.put(task.index, record)

    async def _try(self, task: Task, number: int, detail: str) -> tuple[Record | None, str, str]:
        """One request and its judgement: (record, cause, what was wrong)."""
        messages = self._conversation(task, detail)
        tokens_in = count_prompt(messages)
        if task.schema is not None:
            tokens_in += count_tokens(str(task.schema))
        worst = _spent(self.teacher.price, round(tokens_in * SLACK), self.config.max_tokens, estimated=1)
        ticket = await self.budget.reserve(worst)
        spent = Spent()
        self.ledger.note({"t": "ask", "id": task.id, "n": number, "worst": vars(worst)})
        try:
            answer = await self.teacher.ask(messages, task.schema, self._seed(task, number))
            spent = _paid(answer, tokens_in).plus(_times(answer.maybe_paid, worst))
        except TeacherFailed as error:
            spent = _times(error.maybe_paid, worst)
            self.ledger.note({"t": "lost", "id": task.id, "n": number, "spent": vars(spent)})
            raise
        except Refused as error:
            self._refused += 1
            if self._refused >= TOO_MANY_FAILURES and not self._any_answer:
                raise RunError(f"the teacher refuses every request: {error}") from None
            refusal = self._reply(task, number, "", "error", spent, None)
            self.ledger.note({**refusal, "cause": "refused", "detail": str(error)})
            return None, "refused", str(error)
        finally:
            await self.budget.settle(ticket, spent)
        self._failures, self._any_answer = 0, True
        reply = self._reply(task, number, answer.text, answer.finish_reason, spent, answer.teacher)
        try:
            record = self.judge(task, answer.text, answer.finish_reason)
        except BadAnswer as error:
            self.ledger.note({**reply, "cause": error.cause, "detail": error.detail})
            return None, error.cause, error.detail
        self.ledger.note(reply)
        return record, "", ""

    @staticmethod
    def _reply(task: Task, number: int, text: str, finish: str, spent: Spent, teacher: str | None) -> dict[str, Any]:
        """The ledger's line about an answer, before it is judged."""
        reply = {"t": "reply", "id": task.id, "n": number, "text": text, "finish_reason": finish, "cause": None}
        return {**reply, "detail": "", "spent": vars(spent), "teacher": teacher}

    def _conversation(self, task: Task, detail: str) -> list[dict[str, str]]:
        """What is sent: the row's messages, and after a wrong answer what was wrong with it.

        An answer of the wrong form is shown again, to be mended; one of the wrong content is not, since small models
        would copy it.
        """
        replies = self.ledger.history.row(task.id).replies
        messages = [dict(message) for message in task.messages]
        if not replies or replies[-1]["cause"] is None:  # a good answer whose row a full disk did not take
            return messages
        last, cause = replies[-1]["text"], replies[-1]["cause"]
        if (cause == "json" or cause.startswith("schema:")) and len(last) <= LONGEST_REPEATED:
            messages.append({"role": "assistant", "content": last})
            return [*messages, {"role": "user", "content": MEND.format(detail=detail)}]
        messages[-1]["content"] += f"\n\n{AGAIN.format(detail=detail)}"
        return messages

    def _seed(self, task: Task, number: int) -> int:
        """A seed for the server that depends on the row and the try alone; 31 bits, which every server takes."""
        text = f"{self.seed}\x1f{task.id}\x1f{number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    async def _failed(self, task: Task, error: TeacherFailed) -> None:
        """No answer for this row: said, and asked again by the next run; too many in a row end this one."""
        await self._close(task.facts(), error.cause, error.detail)
        await self._order.put(task.index, None)
        self._failures += 1
        if self._failures >= TOO_MANY_FAILURES:
            raise RunError(
                f"the teacher does not answer: {error.detail}. {self._done} of {self.total} rows are decided; "
                "run the same command again to go on"
            )

    async def _close(self, record: Record, cause: str | None = None, detail: str = "") -> None:
        """The last word on a row: into the ledger, onto the disk, then into its files."""
        entry = end_entry(record, cause, detail)
        await self.ledger.append({**entry, "t": "part"} if self.in_parts else entry)
        row = self.ledger.history.row(record["id"])
        if self.in_parts:
            self.work.write_raw(record["id"], row)
        else:
            self.work.write_row(record["id"], row)
        self._done += 1

    async def decide(self, record: Record) -> None:
        """Accept a record, or reject it as a copy of an accepted one; called in the order of rows."""
        assert self.duplicates is not None
        copy_of = self.duplicates.find(record)
        if copy_of is None:
            self.duplicates.add(record)
            await self._close(record)
        else:
            await self._close(_without_answer(record), "duplicate", f"too like the accepted row {copy_of}")

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY_S:
            return
        self._reported = now
        causes = Counter(row.end["cause"] for row in self.ledger.history.rows.values() if row.end)
        accepted = causes.pop(None, 0)
        waiting = sum(row.passed is not None and row.end is None for row in self.ledger.history.rows.values())
        through = self._done - self._done_before + waiting
        left = (self.total - self._done - waiting) * (now - self._started) / max(through, 1)
        print(
            f"{self._done + waiting}/{self.total}: {accepted} accepted, {sum(causes.values())} rejected, "
            f"{waiting} wait for earlier rows; "
            f"{self.budget.spent.usd:.4f} USD, {self.budget.spent.tokens} tokens, about {left:.0f} s left",
            file=sys.stderr,
        )


class InOrder:
    """Decisions that depend on earlier rows wait for them, so that they are the same with any number of workers."""

    def __init__(self, asking: Asking):
        self.asking = asking
        self._waiting: dict[int, Record | None] = {}
        self._open: set[int] = set()  # rows that a worker is at
        self._deciding = asyncio.Lock()

    def expect(self, index: int) -> None:
        """A row's turn has begun: later rows wait for it."""
        self._open.add(index)

    async def put(self, index: int, record: Record | None) -> None:
        """A row is through: with a record that is not decided, or without."""
        self._open.discard(index)
        if record is not None:
            self._waiting[index] = record
        async with self._deciding:
            first_open = min(self._open, default=None)
            for number in sorted(self._waiting):
                if first_open is not None and number > first_open:
                    return
                record = self._waiting.pop(number)
                if record is not None:
                    await self.asking.decide(record)

    async def flush(self) -> None:
        """Decide what is left: rows that a budget kept from being asked are not waited for."""
        self._open.clear()
        await self.put(-1, None)


def _without_answer(record: Mapping[str, Any]) -> Record:
    return {key: record[key] for key in ("id", "index", "variant", "slots", "compute", "messages")}


def _spent(price: Price, tokens_in: int, tokens_out: int, estimated: int = 0) -> Spent:
    return Spent(tokens_in, tokens_out, price.cost(tokens_in, tokens_out), 1, estimated)


def _times(number: int, spent: Spent) -> Spent:
    total = Spent()
    for _ in range(number):
        total = total.plus(spent)
    return total


def _paid(answer: Answer, guessed_in: int) -> Spent:
    """What an answer cost, by the server's usage, or guessed from the texts where it says none."""
    if answer.usage is None:
        return _spent(answer.price, guessed_in, count_tokens(answer.text), estimated=1)
    return _spent(answer.price, answer.usage.prompt_tokens, answer.usage.completion_tokens)
