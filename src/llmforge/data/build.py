"""From a recipe's `dataset` to encoded rows: read, split, mix, encode, in this order, with a report on every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.data.cache import cache_root, encoded_once
from llmforge.data.encode import encode_examples
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import EncodedSet, Example, RowReport
from llmforge.data.files import data_files
from llmforge.data.mix import Share, mix_order, shares
from llmforge.data.read import read_examples
from llmforge.data.registry import resolve_dataset
from llmforge.data.split import prompt_key, split_rows
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError
from llmforge.runs import sha256_file

HELD_OUT = "validation"  # name of the rows that val_size holds out
MOST_REASONS = 5  # reasons shown when no row is left


@dataclass
class Rows:
    """Examples of a recipe before encoding. `evals` maps eval_dataset's names, and "validation", to their rows."""

    train: list[Example] = field(default_factory=list)
    evals: dict[str, list[Example]] = field(default_factory=dict)
    reports: list[RowReport] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataSets:
    """What a run learns from and is measured on.

    Attributes:
        train, evals: encoded rows; `evals` is by name of the eval_dataset, or "validation" for val_size.
        train_examples, eval_examples: what `EncodedSet.examples` points into.
        reports: one per step and data set; rows in = rows out + rejected in each.
        hashes: file -> sha256.
        mixture: what each data set contributes to `train`.
        notes: said once at the start of a run.
    """

    train: EncodedSet
    evals: dict[str, EncodedSet]
    train_examples: list[Example]
    eval_examples: dict[str, list[Example]]
    reports: list[RowReport]
    hashes: dict[str, str]
    mixture: list[Share]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The content of data_report.json."""
        return {
            "steps": [report.as_dict() for report in self.reports],
            "mixture": [share.__dict__ for share in self.mixture],
            "rows": {"train": len(self.train), **{name: len(rows) for name, rows in self.evals.items()}},
            "files": self.hashes,
            "notes": self.notes,
        }


def build_data(recipe: Recipe, tokenizer: Tokenizer, template: Template) -> DataSets:
    """Read, split, mix and encode what the recipe's `dataset` and `eval_dataset` name.

    Raises:
        RecipeError: no data set, wrong files or entries, or not one usable row; the reasons are counted.
    """
    if not recipe.data.dataset:
        raise RecipeError("dataset: nothing is given to learn from")
    rows = read_rows(recipe, recipe.finetune.stage)
    train = _encode(recipe, tokenizer, template, "train", rows.train, rows.reports)
    evals = {
        name: _encode(recipe, tokenizer, template, name, examples, rows.reports)
        for name, examples in rows.evals.items()
    }
    mixture = shares(train, rows.train)
    notes = [*_unused_keys(recipe), *rows.notes, *(note for report in rows.reports for note in report.notes)]
    if len(mixture) > 1:
        notes += [str(share) for share in mixture]
    return DataSets(train, evals, rows.train, rows.evals, rows.reports, rows.hashes, mixture, notes)


def read_rows(recipe: Recipe, stage: str) -> Rows:
    """The recipe's examples; held-out rows are split off before the data sets are mixed.

    Raises:
        RecipeError: see build_data.
    """
    data, seed = recipe.data, recipe.train.seed
    rows = Rows()
    sets = [_read(recipe, given, stage, rows, data.val_group_by if data.val_size else None) for given in data.dataset]
    everything = [example for examples in sets for example in examples]
    kept, held, notes = split_rows(everything, data.val_size, seed)
    rows.notes += notes
    if held:
        rows.evals[HELD_OUT] = [everything[i] for i in held]
    lengths = _lengths_after_split([len(examples) for examples in sets], kept)
    order = mix_order(lengths, data.mix_strategy, data.interleave_probs, seed)
    rows.train = [everything[kept[i]] for i in order]
    if data.mix_strategy != "concat" and len(sets) > 1:
        used = len(set(order.tolist()))
        rows.notes.append(
            f"mix_strategy: {data.mix_strategy} makes {len(order)} rows of {used}; {len(kept) - used} are left out"
        )
    read_eval_rows(recipe, stage, rows)
    rows.notes += _overlap(rows)
    return rows


def read_eval_rows(recipe: Recipe, stage: str, rows: Rows) -> Rows:
    """Add the rows of eval_dataset to `rows`, each data set under its own name."""
    for given in recipe.data.eval_dataset:
        name = _entry(recipe, given).name
        while name in rows.evals:
            name += "_2"
        rows.evals[name] = _read(recipe, given, stage, rows)
    return rows


def _entry(recipe: Recipe, given: Any) -> DatasetEntry:
    hub = "modelscope" if recipe.model.model_source == "modelscope" else "auto"
    return resolve_dataset(given, recipe.data.dataset_dir, hub=hub)


def _read(recipe: Recipe, given: Any, stage: str, rows: Rows, group_by: str | None = None) -> list[Example]:
    entry = _entry(recipe, given)
    examples, report = read_examples(
        entry, stage=stage, max_samples=recipe.data.max_samples, seed=recipe.train.seed, group_by=group_by
    )
    rows.reports.append(report)
    if not examples:
        raise RecipeError(f"dataset {entry.name!r}: {entry.where} has no usable row{_counted([report])}")
    if entry.path:
        rows.hashes.update({str(path): sha256_file(path) for path in data_files(entry.path)})
    return examples


def _lengths_after_split(lengths: list[int], kept: Sequence[int]) -> list[int]:
    """Rows of each data set that were not held out."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    counts = [0] * len(lengths)
    number = 0
    for position in kept:
        while position >= ends[number]:
            number += 1
        counts[number] += 1
    return counts


def _encode(
    recipe: Recipe,
    tokenizer: Tokenizer,
    template: Template,
    name: str,
    examples: list[Example],
    reports: list[RowReport],
) -> EncodedSet:
    data = recipe.data
    policy = LabelPolicy(data.train_on_prompt, data.mask_history)
    options: dict[str, Any] = {
        "stage": recipe.finetune.stage,
        "cutoff_len": data.cutoff_len,
        "truncation": data.truncation,
        "packing": data.packing,
    }

    def build() -> tuple[EncodedSet, RowReport]:
        return encode_examples(examples, template, tokenizer, policy=policy, **options)

    encoded, report = encoded_once(
        cache_root(recipe.model.cache_dir),
        examples,
        template,
        tokenizer,
        {**options, "train_on_prompt": policy.train_on_prompt, "mask_history": policy.mask_history},
        build,
        overwrite=data.overwrite_cache,
    )
    report.name = f"encode {name}"
    reports.append(report)
    if not len(encoded):
        raise RecipeError(f"dataset: no row is left to use for {name}{_counted([report])}")
    return encoded


def _counted(reports: list[RowReport]) -> str:
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


def _unused_keys(recipe: Recipe) -> list[str]:
    """Notes on keys that change nothing, because encoded rows are memory-mapped and one process makes them."""
    notes = []
    if recipe.data.streaming:
        notes.append("streaming: rows are encoded before training and read from disk as they are needed")
    if (recipe.data.preprocessing_num_workers or 1) > 1:
        # 90 microseconds for a row of 35 tokens (Qwen2.5 tokenizer, one core), and only when nothing is cached
        notes.append("preprocessing_num_workers: one process encodes; its result is kept for the next run")
    return notes


def _overlap(rows: Rows) -> list[str]:
    """Notes on evaluation rows whose prompt is also learned: their scores say little."""
    learned = {prompt_key(example) for example in rows.train}
    notes = []
    for name, examples in rows.evals.items():
        known = sum(prompt_key(example) in learned for example in examples)
        if known:
            notes.append(f"{name}: {known} of {len(examples)} rows have a prompt that is also learned")
    return notes
