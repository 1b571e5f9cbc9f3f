"""A recipe's rows as examples, for whoever answers them: eval_dataset, or the rows that val_size holds out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.data.example import Example, RowReport
from llmforge.data.prepare import Reading
from llmforge.data.registry import resolve_dataset
from llmforge.data.split import split_rows
from llmforge.errors import RecipeError

HELD_OUT = "validation"  # name of the rows that val_size holds out
MOST_REASONS = 5  # reasons shown when no row is left


@dataclass
class Rows:
    """Examples before encoding, by the names of their data sets, or "validation"."""

    evals: dict[str, list[Example]] = field(default_factory=dict)
    reports: list[RowReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def reading(recipe: Recipe, given: Any, stage: str, group_by: str | None = None) -> Reading:
    """How one entry of `dataset` or `eval_dataset` is read."""
    hub = "modelscope" if recipe.model.model_source == "modelscope" else "auto"
    entry = resolve_dataset(given, recipe.data.dataset_dir, hub=hub)
    return Reading(entry, stage, recipe.data.max_samples, recipe.train.seed, group_by)


def train_readings(recipe: Recipe, stage: str) -> list[Reading]:
    """The entries of `dataset`; groups matter only where rows are held out."""
    group_by = recipe.data.val_group_by if recipe.data.val_size else None
    return [reading(recipe, given, stage, group_by) for given in recipe.data.dataset]


def eval_readings(recipe: Recipe, stage: str, taken: tuple[str, ...] = ()) -> dict[str, Reading]:
    """The entries of `eval_dataset`, each under a name of its own."""
    found: dict[str, Reading] = {}
    for given in recipe.data.eval_dataset:
        one = reading(recipe, given, stage)
        name = one.entry.name
        while name in found or name in taken:
            name += "_2"
        found[name] = one
    return found


def held_out_rows(recipe: Recipe, stage: str) -> Rows:
    """The rows that training with this recipe holds out.

    Raises:
        RecipeError: wrong files or entries, or a data set without a usable row.
    """
    rows = Rows()
    everything = [e for one in train_readings(recipe, stage) for e in _read(one, rows)]
    _, held, rows.notes = split_rows(everything, recipe.data.val_size, recipe.train.seed)
    if held:
        rows.evals[HELD_OUT] = [everything[i] for i in held]
    return rows


def eval_rows(recipe: Recipe, stage: str) -> Rows:
    """The rows of eval_dataset.

    Raises:
        RecipeError: wrong files or entries, or a data set without a usable row.
    """
    rows = Rows()
    for name, one in eval_readings(recipe, stage).items():
        rows.evals[name] = _read(one, rows)
    return rows


def _read(one: Reading, rows: Rows) -> list[Example]:
    report = RowReport(f"read {one.entry.name}")
    examples = list(one.examples(report))
    rows.reports.append(report)
    if not examples:
        raise no_usable_row(one, report)
    return examples


def no_usable_row(one: Reading, report: RowReport) -> RecipeError:
    return RecipeError(f"dataset {one.entry.name!r}: {one.entry.where} has no usable row{counted([report])}")


def counted(reports: list[RowReport]) -> str:
    """The reasons with their numbers, the most frequent first."""
    counts: dict[str, int] = {}
    for report in reports:
        for reason, count in report.reasons().items():
            counts[reason] = counts.get(reason, 0) + count
    if not counts:
        return ": it holds no rows"
    lines = [f"\n  {count} x {reason}" for reason, count in list(counts.items())[:MOST_REASONS]]
    more = len(counts) - MOST_REASONS
    return ":" + "".join(lines) + (f"\n  and {more} other reasons" if more > 0 else "")
