"""`generate`: from a recipe to accepted rows in its work folder; begun runs go on where they stopped."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.datagen.answer import BadAnswer, Parsed
from llmforge.datagen.asking import Asking, Judge
from llmforge.datagen.budget import count_prompt, count_tokens, price_of, price_table
from llmforge.datagen.copies import Duplicates
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.ledger import History, Ledger
from llmforge.datagen.manifest import recipe_facts, write_stage
from llmforge.datagen.task import Task, TaskMaker
from llmforge.datagen.teacher import Teacher
from llmforge.datagen.work import Work, end_entry
from llmforge.errors import GateError, RecipeError

PARSED_NOT = ("empty", "cut", "json", "refused")


@dataclass(frozen=True)
class GenerateResult:
    """What a run left behind; `counts` are those of the whole folder."""

    folder: Path
    counts: dict[str, Any]
    digests: dict[str, str]
    stopped_by: str | None = None


def generate(recipe: DatasetRecipe, preview: int | None = None) -> GenerateResult:
    """Make the rows of a recipe, or with `preview` its first few; rows that are decided are not asked again.

    Raises:
        RecipeError: the recipe cannot run, or its folder was begun with another one.
        GateError: the budget is used up, or too many rows were rejected; what was accepted is kept.
        RunError: the teacher stopped answering, or the disk is full.
    """
    run = MODES[recipe.mode]
    started = time.time()
    result: GenerateResult = run(recipe, preview)
    _write_manifest(recipe, result, started)
    _gate(recipe, result, preview)
    return result


def _slots(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """mode: slots, the usual one."""
    maker = TaskMaker.of(recipe)
    tasks = list(_tasks(maker, preview))
    for task in tasks:
        maker.check_contradictions(task)
    return ask_all(recipe, tasks, maker.judge, maker.digests, maker.num_rows)


def _rules(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """mode: rules: texts and outputs by template from table rows; no teacher."""
    maker = TaskMaker.of(recipe)
    work, ledger = open_work(recipe, maker.digests)
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


def _selfinstruct(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    from llmforge.datagen.selfinstruct import self_instruct

    return self_instruct(recipe, preview)


def _label(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    from llmforge.datagen.label import label

    return label(recipe, preview)


MODES = {"slots": _slots, "rules": _rules, "selfinstruct": _selfinstruct, "label": _label}


def ask_all(
    recipe: DatasetRecipe, tasks: Iterable[Task], judge: Judge, digests: dict[str, str], total: int
) -> GenerateResult:
    """Open the folder and the teacher, ask for every task, close both."""
    work, ledger = open_work(recipe, digests)
    try:
        stopped_by = asyncio.run(_ask(recipe, work, ledger, tasks, judge, total))
    except KeyboardInterrupt:
        done = sum(row.is_done for row in ledger.history.rows.values())
        print(f"interrupted: {done} of {total} rows are decided and kept in {work.path}", file=sys.stderr)
        raise
    finally:
        ledger.close()
    return GenerateResult(work.path, counts_of(ledger.history, total), digests, stopped_by)


async def _ask(
    recipe: DatasetRecipe, work: Work, ledger: Ledger, tasks: Iterable[Task], judge: Judge, total: int
) -> str | None:
    pending = [task for task in tasks if not ledger.history.row(task.id).is_done]
    if not pending:
        return None
    teacher = await asyncio.to_thread(Teacher.of, recipe)
    await teacher.start()
    try:
        duplicates = seen_so_far(recipe, ledger.history)
        asking = Asking(teacher, recipe.teacher, ledger, work, judge, duplicates, recipe.seed, total)
        await asking.run(pending)
    finally:
        await teacher.stop()
    return asking.stopped_by


def open_work(recipe: DatasetRecipe, digests: dict[str, str]) -> tuple[Work, Ledger]:
    """The folder of a recipe and its ledger, with files that a kill left unwritten.

    Raises:
        RecipeError: the folder was begun with a recipe whose rows would be others; names what differs.
        RunError: another process is at work there.
    """
    work = Work(recipe.folder)
    work.make()
    ledger = Ledger(work.ledger_path)
    try:
        begun = ledger.history.begin
        if begun is None:
            ledger.note({"t": "begin", "name": recipe.name, "digests": digests})
        elif differing := [k for k in {**begun["digests"], **digests} if begun["digests"].get(k) != digests.get(k)]:
            raise RecipeError(
                f"store.dir: {work.path} was begun with another recipe; different: {', '.join(sorted(differing))}. "
                "Undo that change, give another name or store.dir, or remove the folder"
            )
        work.restore(ledger.history.rows)
    except BaseException:
        ledger.close()
        raise
    return work, ledger


def seen_so_far(recipe: DatasetRecipe, history: History) -> Duplicates | None:
    """The comparison for copies, knowing the rows accepted by earlier runs."""
    duplicates = Duplicates.of(recipe.dedupe)
    if duplicates is not None:
        ends = [row.end for row in history.rows.values() if row.end and row.end["cause"] is None]
        for end in sorted(ends, key=lambda end: end["record"]["index"]):
            duplicates.add(end["record"])
    return duplicates


def counts_of(history: History, total: int) -> dict[str, Any]:
    """Counts of a folder: rows, then answers, then what they cost."""
    ends = [row.end for row in history.rows.values() if row.end]
    causes = Counter(end["cause"] for end in ends)
    accepted = causes.pop(None, 0)
    failed = sum(count for cause, count in causes.items() if cause.startswith("teacher:"))
    answers = [reply["cause"] or "" for row in history.rows.values() for reply in row.replies]
    parsed = [cause for cause in answers if cause not in PARSED_NOT]
    schema_ok = [cause for cause in parsed if not cause.startswith("schema:")]
    spent = history.spent
    return {
        "rows": total,
        "accepted": accepted,
        "rejected": sum(causes.values()) - failed,
        "unanswered": failed,
        "open": total - len(ends),
        "causes": dict(sorted(causes.items(), key=lambda item: (-item[1], item[0]))),
        "repaired": sum(bool(end["record"].get("repaired")) for end in ends if end["cause"] is None),
        "answers": len(answers),
        "parsed": len(parsed),
        "schema_ok": len(schema_ok),
        "checks_ok": sum(not cause for cause in answers),
        "duplicate": causes.get("duplicate", 0),
        "tokens_in": spent.tokens_in,
        "tokens_out": spent.tokens_out,
        "usage_estimated": spent.estimated,
        "cost_usd": round(spent.usd, 6),
    }


def estimate(recipe: DatasetRecipe) -> dict[str, Any]:
    """Tokens and money the recipe would take, for its own model and every priced one that offers its mode.

    Tokens come from answers in the ledger where there are any (`--preview` makes some), otherwise they are guessed.
    """
    maker = TaskMaker.of(recipe)
    sample = [maker.task(index) for index in range(min(maker.num_rows, 100))]
    guessed = sum(count_prompt(list(task.messages)) + count_tokens(str(task.schema or "")) for task in sample)
    tokens_in, tokens_out, measured = guessed / len(sample), float(recipe.teacher.max_tokens), 0
    path = Work(recipe.folder).ledger_path
    if path.is_file():
        ledger = Ledger(path)
        ledger.close()
        rows = [row for row in ledger.history.rows.values() if row.replies and row.is_done]
        replies = [reply["spent"] for row in rows for reply in row.replies]
        if rows:
            measured = len(rows)  # several answers to one row count: they are paid
            tokens_in = sum(spent["tokens_in"] for spent in replies) / measured
            tokens_out = sum(spent["tokens_out"] for spent in replies) / measured
    own = recipe.teacher.model or ""
    prices = {name: price for name, price in price_table().items() if price.json_mode or recipe.teacher.mode == "text"}
    if recipe.teacher.base_url and (price := price_of(own, recipe.teacher.price)):
        prices = {own: price, **prices}
    rows_left = maker.num_rows
    return {
        "rows": rows_left,
        "tokens_in_per_row": round(tokens_in, 1),
        "tokens_out_per_row": round(tokens_out, 1),
        "measured_rows": measured,
        "usd": {name: round(rows_left * price.cost(tokens_in, tokens_out), 4) for name, price in prices.items()},
        "prices_of": max(price.date for price in price_table().values()),
    }


def _tasks(maker: TaskMaker, preview: int | None) -> Iterator[Task]:
    ids: dict[str, int] = {}
    for index in range(maker.num_rows if preview is None else min(preview, maker.num_rows)):
        task = maker.task(index)
        if task.id in ids:
            raise RecipeError(f"slots.id: rows {ids[task.id]} and {index} have the same id {task.id!r}")
        ids[task.id] = index
        yield task


def _write_manifest(recipe: DatasetRecipe, result: GenerateResult, started: float) -> None:
    config = recipe.teacher
    teacher = {"model": config.model, "base_url": config.base_url, "mode": config.mode, "fallback": config.fallback}
    facts = {
        **recipe_facts(recipe),
        "digests": result.digests,
        "teacher": None if recipe.mode == "rules" else teacher,
        "started_at": round(started, 3),
        "counts": result.counts,
        "stopped_by": result.stopped_by,
    }
    write_stage(result.folder, "generate", facts)


def _gate(recipe: DatasetRecipe, result: GenerateResult, preview: int | None) -> None:
    counts = result.counts
    if result.stopped_by is not None:
        raise GateError(f"{result.stopped_by}. {counts['accepted']} rows are accepted, {counts['open']} were not asked")
    decided = counts["accepted"] + counts["rejected"]
    if preview is None and decided and counts["rejected"] / decided > recipe.max_rejected:
        worst = ", ".join(f"{cause} {count}" for cause, count in list(counts["causes"].items())[:3])
        raise GateError(
            f"{counts['rejected']} of {decided} rows were rejected ({worst}), above max_rejected "
            f"{recipe.max_rejected:g}; accepted rows are in {result.folder / 'ok'}"
        )
