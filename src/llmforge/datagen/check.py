"""The check of a recipe of `kind: dataset`: everything that can be seen without asking anybody or writing anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.config.checked import Checked, files_of
from llmforge.config.given import Problem
from llmforge.config.schema import ModelConfig
from llmforge.datagen.budget import known_price
from llmforge.datagen.convert import plan_conversion
from llmforge.datagen.environment import secret
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.label import read_labels, rows_to_label
from llmforge.datagen.recipe import expand_url, load_dataset_recipe
from llmforge.datagen.selfinstruct import read_seeds
from llmforge.datagen.task import TaskMaker
from llmforge.datagen.work import Work
from llmforge.errors import RecipeError
from llmforge.model.sources import local_folder

MAKING = ("slots", "selfinstruct.seeds", "label.rows")  # with one of these keys a recipe makes rows
MOST_TASKS = 1000


@dataclass
class CheckedDataset(Checked):
    """The check of a recipe that makes a data set."""

    recipe: DatasetRecipe

    def look(self, at: Callable[[DatasetRecipe, CheckedDataset], None]) -> None:
        """Look at one part; what it raises is a problem, at the line of the key that its message begins with."""
        try:
            at(self.recipe, self)
        except RecipeError as error:
            key = str(error).partition(":")[0].strip()
            origins = self.recipe.origins
            found = next((name for name in (key, key.rpartition(".")[0], key.partition(".")[0]) if name in origins), "")
            self.problems.append(Problem(origins.get(found), str(error)))


def check_dataset(words: Sequence[str]) -> CheckedDataset:
    """Check the recipe behind the words.

    Raises:
        RecipeError: wrong keys; what the keys point at is in `problems`.
    """
    recipe = load_dataset_recipe(words, "check")
    making = any(key in recipe.origins for key in MAKING)
    if making:
        recipe = load_dataset_recipe(words)  # once more, for what a recipe that makes rows must say
    result = CheckedDataset(recipe, files=files_of(recipe.origins))
    if making:
        result.look(_rows)
        if recipe.mode != "rules":
            result.look(_teacher)
    if recipe.convert.file or any(key.startswith("convert.") for key in recipe.origins):
        result.look(_conversion)
    return result


def _rows(recipe: DatasetRecipe, result: CheckedDataset) -> None:
    if recipe.mode == "selfinstruct":
        seeds = read_seeds(Path(str(recipe.selfinstruct.seeds)))
        result.fine.append(f"selfinstruct.seeds: {len(seeds)} seed tasks for {recipe.rows} rows")
        return
    if recipe.mode == "label":
        labels = read_labels(Path(str(recipe.label.labels)))
        rows = rows_to_label(recipe, labels)
        result.fine.append(f"label.rows: {len(rows)} rows, {len(labels)} labels, {recipe.label.votes} votes each")
        return
    maker = TaskMaker.of(recipe)
    tasks = [maker.task(index) for index in range(min(maker.num_rows, MOST_TASKS))]
    for task in tasks:
        maker.check_contradictions(task)
    twice = [name for name, count in Counter(task.id for task in tasks).items() if count > 1]
    if twice:
        raise RecipeError(f"slots.id: {len(twice)} ids come twice, such as {twice[0]!r}")
    result.fine.append(f"slots: {maker.num_rows} rows, {len(maker.slots)} slots, {len(maker.checks)} checks")
    result.fine += [
        f"slots.{slot.name}: {len(slot.table.rows)} values, {slot.quota // len(slot.table.rows)} rows of each"
        for slot in maker.slots
        if slot.quota and slot.table
    ]


def _teacher(recipe: DatasetRecipe, result: CheckedDataset) -> None:
    config = recipe.teacher
    if config.key_env:
        secret(config.key_env, recipe, "teacher")
    if config.base_url is None:
        if local_folder(ModelConfig(model_name_or_path=config.model)) is None:
            result.not_checked.append(
                f"teacher: {config.model} is not fetched yet; forge-cli models get {config.model}"
            )
        else:
            result.fine.append(f"teacher: {config.model} on this machine")
        return
    if config.budget_usd is not None:
        known_price(str(config.model), config.price)
    if expand_url(config.base_url) is None and not config.fallback:
        raise RecipeError(f"teacher.base_url: {config.base_url} names an environment variable that is not set")
    result.not_checked.append(f"teacher: whether {config.model} answers at {config.base_url}")


def _conversion(recipe: DatasetRecipe, result: CheckedDataset) -> None:
    if not recipe.convert.file and not any(Work(recipe.folder).ok.glob("*.json")):
        result.not_checked.append(f"convert: no accepted rows in {recipe.folder} yet")
        return
    report = plan_conversion(recipe).result.report
    result.fine.append(f"convert: {report.rows_out} of {report.rows_in} rows can be used")
    result.remarks += [f"convert: {count} x {reason}" for reason, count in report.reasons().items()]
