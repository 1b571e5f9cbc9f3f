"""mode: slots and mode: rules: rows from sampled facts, asked of a teacher or written by template."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from llmforge.datagen.answer import BadAnswer, Parsed
from llmforge.datagen.asking import Asking
from llmforge.datagen.copies import Duplicates
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.ledger import History
from llmforge.datagen.quota import short_of, spares
from llmforge.datagen.session import GenerateResult, Session, counts_of, open_session, seen_so_far
from llmforge.datagen.task import Task, TaskMaker
from llmforge.datagen.work import end_entry
from llmforge.errors import RecipeError


def from_slots(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """mode: slots, the usual one."""
    maker = TaskMaker.of(recipe)
    tasks = list(_tasks(maker, preview))
    for task in tasks:
        maker.check_contradictions(task)
    session = open_session(recipe, maker.digests)
    rounds = recipe.refill if preview is None else 0
    result = session.run(_ask(session, maker, tasks, rounds), maker.num_rows)
    return _with_shortage(result, maker, session.ledger.history)


async def _ask(session: Session, maker: TaskMaker, tasks: list[Task], rounds: int) -> str | None:
    """Ask for the rows, then for spares of those that were rejected; what stopped it early.

    Spares come after all rows, and are decided in the order of their rows, so that they are the same at any speed.
    """
    history = session.ledger.history
    async with contextlib.AsyncExitStack() as stack:
        asking: Asking | None = None
        for number in range(rounds + 1):
            tasks = tasks if number == 0 else spares(maker, tasks, history)
            pending = [task for task in tasks if not history.row(task.id).is_done]
            if not pending:
                continue
            if asking is None:  # nothing to ask needs no teacher
                asking = await stack.enter_async_context(session.asking(maker.judge, maker.num_rows))
            asking.total += len(pending) if number else 0
            await asking.run(pending)
            if asking.stopped_by is not None:
                return asking.stopped_by
    return None


def from_rules(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """mode: rules: texts and outputs by template from table rows; no teacher."""
    maker = TaskMaker.of(recipe)
    session = open_session(recipe, maker.digests)
    history = session.ledger.history
    duplicates = seen_so_far(recipe, history)
    try:
        tasks = list(_tasks(maker, preview))
        for number in range(1 + (recipe.refill if preview is None else 0)):
            tasks = tasks if number == 0 else spares(maker, tasks, history)
            for task in tasks:
                if not history.row(task.id).is_done:
                    _write(session, maker, task, duplicates)
    finally:
        session.ledger.close()
    result = GenerateResult(session.work.path, counts_of(history, maker.num_rows), maker.digests)
    return _with_shortage(result, maker, history)


def _write(session: Session, maker: TaskMaker, task: Task, duplicates: Duplicates | None) -> None:
    """Make one row by template, and decide it."""
    try:
        record = maker.record(task, Parsed(None))
        copy_of = duplicates.find(record) if duplicates else None
        cause, detail = ("duplicate", f"too like the accepted row {copy_of}") if copy_of else (None, "")
        entry = end_entry(task.facts() if copy_of else record, cause, detail)
    except BadAnswer as error:
        entry = end_entry(task.facts(), error.cause, error.detail)
    if entry["cause"] is None and duplicates:
        duplicates.add(record)
    session.ledger.note(entry)
    session.work.write_row(task.id, session.ledger.history.row(task.id))


def _with_shortage(result: GenerateResult, maker: TaskMaker, history: History) -> GenerateResult:
    """The counts, and which quotas rejected rows have left short."""
    short = short_of(maker, history) if history.rows else {}
    return replace(result, counts={**result.counts, **({"short": short} if short else {})})


def _tasks(maker: TaskMaker, preview: int | None) -> Iterator[Task]:
    ids: dict[str, int] = {}
    for index in range(maker.num_rows if preview is None else min(preview, maker.num_rows)):
        task = maker.task(index)
        if task.id in ids:
            raise RecipeError(f"slots.id: rows {ids[task.id]} and {index} have the same id {task.id!r}")
        ids[task.id] = index
        yield task
