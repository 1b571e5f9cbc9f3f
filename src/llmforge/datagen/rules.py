"""mode: slots and mode: rules: rows from sampled facts, asked of a teacher or written by template."""

from __future__ import annotations

from collections.abc import Iterator

from llmforge.datagen.answer import BadAnswer, Parsed
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.session import GenerateResult, counts_of, open_session, seen_so_far
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
    return session.run(session.ask(tasks, maker.judge, maker.num_rows), maker.num_rows)


def from_rules(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """mode: rules: texts and outputs by template from table rows; no teacher."""
    maker = TaskMaker.of(recipe)
    session = open_session(recipe, maker.digests)
    work, ledger = session.work, session.ledger
    duplicates = seen_so_far(recipe, ledger.history)
    try:
        for task in _tasks(maker, preview):
            if ledger.history.row(task.id).is_done:
                continue
            try:
                record = maker.record(task, Parsed(None))
                copy_of = duplicates.find(record) if duplicates else None
                cause, detail = ("duplicate", f"too like the accepted row {copy_of}") if copy_of else (None, "")
                entry = end_entry(task.facts() if copy_of else record, cause, detail)
            except BadAnswer as error:
                entry = end_entry(task.facts(), error.cause, error.detail)
            if entry["cause"] is None and duplicates:
                duplicates.add(record)
            ledger.note(entry)
            work.write_row(task.id, ledger.history.row(task.id))
    finally:
        ledger.close()
    return GenerateResult(work.path, counts_of(ledger.history, maker.num_rows), maker.digests)


def _tasks(maker: TaskMaker, preview: int | None) -> Iterator[Task]:
    ids: dict[str, int] = {}
    for index in range(maker.num_rows if preview is None else min(preview, maker.num_rows)):
        task = maker.task(index)
        if task.id in ids:
            raise RecipeError(f"slots.id: rows {ids[task.id]} and {index} have the same id {task.id!r}")
        ids[task.id] = index
        yield task
