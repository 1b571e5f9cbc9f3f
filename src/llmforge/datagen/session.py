"""One session at a work folder: ledger and teacher opened, tasks asked, counts taken."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.datagen.asking import Asking, Judge
from llmforge.datagen.copies import Duplicates
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.ledger import History, Ledger
from llmforge.datagen.task import Task
from llmforge.datagen.teacher import Teacher
from llmforge.datagen.work import Work
from llmforge.errors import RecipeError

PARSED_NOT = ("empty", "cut", "json", "refused")


@dataclass(frozen=True)
class GenerateResult:
    """What a run left behind; `counts` are those of the whole folder."""

    folder: Path
    counts: dict[str, Any]
    digests: dict[str, str]
    stopped_by: str | None = None


@dataclass
class Session:
    """The open folder of a recipe; `digests` say what its rows depend on."""

    recipe: DatasetRecipe
    digests: dict[str, str]
    work: Work
    ledger: Ledger

    def run(self, asking: Coroutine[Any, Any, str | None], total: int) -> GenerateResult:
        """Run to the end, close the ledger, count; an interruption says what is kept."""
        try:
            stopped_by = asyncio.run(asking)
        except KeyboardInterrupt:
            done = sum(row.is_done for row in self.ledger.history.rows.values())
            print(f"interrupted: {done} of {total} rows are decided and kept in {self.work.path}", file=sys.stderr)
            raise
        finally:
            self.ledger.close()
        return GenerateResult(self.work.path, counts_of(self.ledger.history, total), self.digests, stopped_by)

    @contextlib.asynccontextmanager
    async def asking(self, judge: Judge, total: int, in_parts: bool = False) -> AsyncIterator[Asking]:
        """The teacher, ready to be asked."""
        teacher = await asyncio.to_thread(Teacher.of, self.recipe)
        await teacher.start()
        try:
            duplicates = None if in_parts else seen_so_far(self.recipe, self.ledger.history)
            config, seed = self.recipe.teacher, self.recipe.seed
            yield Asking(teacher, config, self.ledger, self.work, judge, duplicates, seed, total, in_parts)
        finally:
            await teacher.stop()

    async def ask(self, tasks: Sequence[Task], judge: Judge, total: int, in_parts: bool = False) -> str | None:
        """Ask for the tasks that are not decided; what stopped it early. Nothing to ask needs no teacher."""
        pending = [task for task in tasks if not self.ledger.history.row(task.id).is_done]
        if not pending:
            return None
        async with self.asking(judge, total, in_parts) as asking:
            await asking.run(pending)
        return asking.stopped_by


def open_session(recipe: DatasetRecipe, digests: dict[str, str]) -> Session:
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
    return Session(recipe, digests, work, ledger)


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
        "rows": max(total, len(ends)),
        "accepted": accepted,
        "rejected": sum(causes.values()) - failed,
        "unanswered": failed,
        "open": max(total - len(ends), 0),
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
