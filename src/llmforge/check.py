"""The whole check of a recipe without torch: data sets, tokenizer, template, a sample of rows, what could not be seen.

`load_recipe` has judged the recipe itself; this looks at what it points at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmforge.config.checked import Checked, files_of
from llmforge.config.given import Problem, refuse
from llmforge.config.schema import Recipe
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import IGNORE, Encoded, Example, Message
from llmforge.data.read import read_examples
from llmforge.data.registry import resolve_dataset
from llmforge.data.templates.compare import compare_with_own
from llmforge.data.templates.find import TEMPLATES, get_template
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer, load_tokenizer
from llmforge.errors import RecipeError, nearest
from llmforge.model.sources import local_folder

SAMPLE = 100  # rows of each data set that are read and encoded


@dataclass
class CheckedRun(Checked):
    """The check of a recipe of one run."""

    recipe: Recipe

    def wrong(self, key: str, message: str) -> None:
        """A problem at the line where `key` was given."""
        self.problems.append(Problem(self.recipe.origins.get(key), message))


def check_recipe(recipe: Recipe) -> CheckedRun:
    """Look at everything a recipe names that can be read without loading a model or going on the net."""
    result = CheckedRun(recipe, files=files_of(recipe.origins), notes=list(recipe.notes))
    tokenizer = _tokenizer(recipe, result)
    template = _template(recipe, tokenizer, result)
    for name, entry in [("dataset", e) for e in recipe.data.dataset] + [
        ("eval_dataset", e) for e in recipe.data.eval_dataset
    ]:
        examples = _sample(name, entry, recipe, result)
        if examples and tokenizer and template:
            _encode(str(entry), examples, template, tokenizer, recipe, result)
    return result


def refuse_names(recipe: Recipe) -> None:
    """The part of the check that costs next to nothing, for a command that is about to load torch: names and files.

    Raises:
        RecipeError: all names of data sets, templates and tokenizers that lead nowhere, with their lines.
    """
    result = CheckedRun(recipe, files=files_of(recipe.origins), notes=list(recipe.notes))
    _template(recipe, _tokenizer(recipe, result), result)
    for key, names in (("dataset", recipe.data.dataset), ("eval_dataset", recipe.data.eval_dataset)):
        for name in names:
            _entry(key, name, recipe, result)
    if result.problems:
        raise refuse(list(dict.fromkeys(o.file for o in recipe.origins.values() if o.file)), result.problems)


def _tokenizer(recipe: Recipe, result: CheckedRun) -> Tokenizer | None:
    name = recipe.model.model_name_or_path
    if not name:
        result.not_checked.append("tokenizer: no model is named")
        return None
    try:
        folder = local_folder(recipe.model)
        if folder is None:
            result.not_checked.append(f"tokenizer: {name} is not fetched yet; forge-cli models get {name}")
            return None
        tokenizer = load_tokenizer(folder)
    except RecipeError as error:
        result.wrong("model_name_or_path", str(error))
        return None
    result.fine.append(f"tokenizer: {len(tokenizer):,} tokens from {folder}")
    return tokenizer


def _template(recipe: Recipe, tokenizer: Tokenizer | None, result: CheckedRun) -> Template | None:
    name = recipe.data.template
    named = name != "auto" and not name.endswith((".yaml", ".yml"))
    if tokenizer is None:
        if named and name not in TEMPLATES:
            known = ", ".join(sorted(TEMPLATES))
            result.wrong("template", f"template: {name!r} is not known.{nearest(name, TEMPLATES)} Known: {known}")
        return None
    try:
        template = get_template(
            name,
            tokenizer,
            default_system=recipe.data.default_system,
            enable_thinking=recipe.data.enable_thinking,
            tool_format=recipe.data.tool_format,
        )
    except RecipeError as error:
        result.wrong("template", str(error))
        return None
    result.fine.append(f"template: {name} ({template.source})")
    if name != "auto" and (difference := compare_with_own(template, tokenizer)):
        result.remarks.append(difference)
    return template


def _entry(key: str, name: str | dict, recipe: Recipe, result: CheckedRun) -> DatasetEntry | None:
    """The entry when its rows are on this machine."""
    try:
        entry = resolve_dataset(name, recipe.data.dataset_dir)
    except RecipeError as error:
        result.wrong(key, str(error))
        return None
    if entry.hub:
        result.not_checked.append(f"{key}: {entry.name} is on a hub")
        return None
    if entry.path is None or not Path(entry.path).exists():
        result.wrong(key, f"{key}: {entry.name!r} names {entry.path}, which does not exist")
        return None
    return entry


def _sample(key: str, name: str | dict, recipe: Recipe, result: CheckedRun) -> list[Example]:
    entry = _entry(key, name, recipe, result)
    if entry is None:
        return []
    try:
        stage = recipe.finetune.stage
        examples, report = read_examples(entry, stage=stage, max_samples=SAMPLE, group_by=recipe.data.val_group_by)
    except RecipeError as error:
        result.wrong(key, str(error))
        return []
    if not examples:
        result.wrong(key, f"{key}: {entry.name!r} has no usable row{_first(report.rejected)}")
    else:
        result.fine.append(f"{key}: {entry.name}: {report.rows_out} of the first {report.rows_in} rows are usable")
        if report.rejected:
            rejected = len(report.rejected)
            result.remarks.append(f"{key}: {entry.name}: {rejected} rows are rejected{_first(report.rejected)}")
    result.remarks += [f"{key}: {note}" for note in report.notes if "max_samples" not in note]
    return examples


def _first(rejected: list) -> str:
    return f"; first {rejected[0][0]}: {rejected[0][1]}" if rejected else ""


def _encode(
    name: str, examples: list[Example], template: Template, tokenizer: Tokenizer, recipe: Recipe, result: CheckedRun
) -> None:
    policy = LabelPolicy(recipe.data.train_on_prompt, recipe.data.mask_history)
    lengths, learned, refused = [], 0, []
    for example in examples:
        try:
            for row in _rows(example, template, tokenizer, policy):
                lengths.append(len(row.input_ids))
                learned += sum(label != IGNORE for label in row.labels)
        except RecipeError as error:
            refused.append((example.source, str(error)))
    if refused:
        result.remarks.append(f"{name}: {len(refused)} rows do not fit the template{_first(refused)}")
    if not lengths:
        result.wrong("template", f"{name}: no row fits the template {template.name}{_first(refused)}")
        return
    total = sum(lengths)
    mean, share = total / len(lengths), learned / total
    result.fine.append(f"{name}: {mean:.0f} tokens a row, longest {max(lengths)}, {share:.0%} of them learned")
    if long := sum(length > recipe.data.cutoff_len for length in lengths):
        cut = f"exceed cutoff_len {recipe.data.cutoff_len} ({recipe.data.truncation})"
        result.remarks.append(f"{name}: {long} of {len(lengths)} rows {cut}")


def _rows(example: Example, template: Template, tokenizer: Tokenizer, policy: LabelPolicy) -> Iterator[Encoded]:
    if example.text is not None:
        ids = tokenizer.ids(example.text)
        yield Encoded(ids, ids)
        return
    endings: list[tuple[Message, ...]] = [(reply,) for reply in (example.chosen, example.rejected) if reply]
    for ending in endings or [()]:
        yield template.encode(tokenizer, (*example.messages, *ending), example.tools, policy=policy)
