"""`generate`: from a recipe to accepted rows in its work folder; begun runs go on where they stopped."""

from __future__ import annotations

import time
from typing import Any

from llmforge.datagen.budget import count_prompt, count_tokens, price_of, price_table
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.ledger import Ledger
from llmforge.datagen.manifest import recipe_facts, write_stage
from llmforge.datagen.session import GenerateResult
from llmforge.datagen.task import TaskMaker
from llmforge.datagen.work import Work
from llmforge.errors import GateError, RecipeError
from llmforge.registry import Registry

MODES = Registry(
    "mode",
    {
        "slots": "llmforge.datagen.rules:from_slots",
        "rules": "llmforge.datagen.rules:from_rules",
        "selfinstruct": "llmforge.datagen.selfinstruct:self_instruct",
        "label": "llmforge.datagen.label:label_rows",
    },
)


def generate(recipe: DatasetRecipe, preview: int | None = None) -> GenerateResult:
    """Make the rows of a recipe, or with `preview` its first few; rows that are decided are not asked again.

    Raises:
        RecipeError: the recipe cannot run, or its folder was begun with another one.
        GateError: the budget is used up, or too many rows were rejected; what was accepted is kept.
        RunError: the teacher stopped answering, or the disk is full.
    """
    run = MODES.get(recipe.mode)
    started = time.time()
    result: GenerateResult = run(recipe, preview)
    _write_manifest(recipe, result, started)
    _gate(recipe, result, preview)
    return result


def estimate(recipe: DatasetRecipe) -> dict[str, Any]:
    """Tokens and money the recipe would take, for its own model and every priced one that offers its mode.

    Tokens come from answers in the ledger where there are any (`--preview` makes some), otherwise they are guessed.
    """
    if recipe.mode != "slots":
        raise RecipeError(f"--estimate: works for mode slots; this recipe has mode {recipe.mode}")
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
