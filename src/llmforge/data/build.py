"""From a recipe's `dataset` to encoded rows: prepare each data set, split, mix, in this order; every row reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llmforge.config.schema import Recipe
from llmforge.data.cache import cache_root
from llmforge.data.encode import EncodeOptions, join_texts, joined_note, split_note
from llmforge.data.example import EncodedSet, Example, RowReport
from llmforge.data.gather import HELD_OUT, counted, eval_readings, no_usable_row, train_readings
from llmforge.data.mix import mix_order
from llmforge.data.mix_counts import DRAWN, EpochRows, epoch_counts
from llmforge.data.mix_table import Share, mix_table, table_lines
from llmforge.data.prepare import Prepared, Reading, prepare
from llmforge.data.rows import ChosenRows, rows_of
from llmforge.data.split import split_keys
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError


class Examples(Sequence[Example]):
    """Examples of prepared sets in the order they are used in; read from their files again when somebody asks."""

    def __init__(self, sets: Sequence[Prepared], numbers: np.ndarray, examples: np.ndarray):
        self.sets, self.numbers, self.examples = sets, numbers, examples

    @cached_property
    def _all(self) -> list[Example]:
        wanted = [set(self.examples[self.numbers == number].tolist()) for number in range(len(self.sets))]
        found = {
            (number, i): example
            for number, one in enumerate(self.sets)
            if wanted[number]
            for i, example in enumerate(one.reading.examples(RowReport("again")))
            if i in wanted[number]
        }
        return [found[key] for key in zip(self.numbers.tolist(), self.examples.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self._all[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self._all)


@dataclass(frozen=True)
class DataSets:
    """What a run learns from and is measured on.

    Attributes:
        train, evals: encoded rows; `evals` is by name of the eval_dataset, or "validation" for val_size.
        train_examples, eval_examples: what `EncodedSet.examples` points into.
        reports: one per step and data set; rows in = rows out + rejected in each.
        hashes: file -> sha256.
        mixture: what each data set contributes to an epoch.
        notes: said once at the start of a run.
        epoch_rows: which rows of `train` an epoch takes; None when every epoch takes each of them once.
        prepared: the data sets as they lie in the cache, those to learn from first.
    """

    train: EncodedSet
    evals: dict[str, EncodedSet]
    train_examples: Sequence[Example]
    eval_examples: dict[str, Sequence[Example]]
    reports: list[RowReport]
    hashes: dict[str, str]
    mixture: list[Share]
    notes: list[str]
    epoch_rows: EpochRows | None = None
    prepared: tuple[Prepared, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The content of data_report.json."""
        return {
            "steps": [report.as_dict() for report in self.reports],
            "mixture": [share.__dict__ for share in self.mixture],
            "rows": {"train": len(self.train), **{name: len(rows) for name, rows in self.evals.items()}},
            "files": self.hashes,
            "notes": self.notes,
        }


def build_data(recipe: Recipe, tokenizer: Tokenizer, template: Template, *, keep_small: bool = False) -> DataSets:
    """Read, encode, split and mix what the recipe's `dataset` and `eval_dataset` name.

    Args:
        keep_small: write small data sets to the cache too.

    Raises:
        RecipeError: no data set, wrong files or entries, or not one usable row; the reasons are counted.
    """
    if not recipe.data.dataset:
        raise RecipeError("dataset: nothing is given to learn from")
    builder = _Builder(recipe, tokenizer, template, keep_small)
    sets = [builder.prepare(one) for one in train_readings(recipe, recipe.finetune.stage)]
    kept, held = builder.split(sets)
    train, examples = builder.train(sets, kept)
    evals: dict[str, EncodedSet] = {}
    eval_examples: dict[str, Sequence[Example]] = {}
    if len(held[0]):
        evals[HELD_OUT] = builder.rows(HELD_OUT, sets, *held)
        eval_examples[HELD_OUT] = Examples(sets, *held)
    eval_sets = []
    for name, one in eval_readings(recipe, recipe.finetune.stage, tuple(evals)).items():
        eval_sets.append(prepared := builder.prepare(one))
        everything = _everything([prepared])
        evals[name] = builder.rows(name, [prepared], *everything)
        eval_examples[name] = Examples([prepared], *everything)
        builder.overlap(name, prepared, sets, kept)
    reports = builder.reports
    notes = [*_unused_keys(recipe), *builder.notes, *(note for report in reports for note in report.notes)]
    if len(builder.mixture) > 1:
        notes += ["mixture of an epoch:", *(f"  {line}" for line in table_lines(builder.mixture))]
    return DataSets(
        train,
        evals,
        examples,
        eval_examples,
        reports,
        builder.hashes,
        builder.mixture,
        notes,
        builder.epoch_rows,
        (*sets, *eval_sets),
    )


Chosen = tuple[np.ndarray, np.ndarray]  # which data set, and which example of it


def _everything(sets: Sequence[Prepared]) -> Chosen:
    counts = [len(one.prompts) for one in sets]
    numbers = np.repeat(np.arange(len(sets), dtype=np.int32), counts)
    return numbers, np.concatenate([np.arange(count) for count in counts])


class _Builder:
    """The steps of build_data, and what they leave behind."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, template: Template, keep_small: bool):
        data = recipe.data
        self.recipe, self.tokenizer, self.template, self.keep_small = recipe, tokenizer, template, keep_small
        self.options = EncodeOptions(
            recipe.finetune.stage,
            LabelPolicy(data.train_on_prompt, data.mask_history),
            data.cutoff_len,
            data.truncation,
            data.packing,
            fill=recipe.finetune.stage == "rm" and recipe.finetune.rm_loss == "token",
        )
        self.reports: list[RowReport] = []
        self.hashes: dict[str, str] = {}
        self.notes: list[str] = []
        self.mixture: list[Share] = []
        self.epoch_rows: EpochRows | None = None

    def prepare(self, one: Reading) -> Prepared:
        prepared = prepare(
            one,
            self.template,
            self.tokenizer,
            self.options,
            cache_root(self.recipe.model.cache_dir),
            overwrite=self.recipe.data.overwrite_cache,
            keep_small=self.keep_small,
        )
        self.reports.append(prepared.read)
        if not len(prepared.prompts):
            raise no_usable_row(one, prepared.read)
        self.hashes.update(one.hashes)
        return prepared

    def split(self, sets: Sequence[Prepared]) -> tuple[Chosen, Chosen]:
        """Examples to learn from, and those that are held out before data sets are mixed."""
        numbers, examples = _everything(sets)
        keys = np.concatenate([one.groups for one in sets])
        kept, held, notes = split_keys(keys, self.recipe.data.val_size, self.recipe.train.seed)
        self.notes += notes
        return (numbers[kept], examples[kept]), (numbers[held], examples[held])

    def train(self, sets: Sequence[Prepared], kept: Chosen) -> tuple[EncodedSet, Examples]:
        data, seed = self.recipe.data, self.recipe.train.seed
        numbers, examples = kept
        if len(sets) > 1 and data.mix_strategy.startswith("interleave"):
            sizes = np.bincount(numbers, minlength=len(sets))
            order = mix_order(sizes.tolist(), data.mix_strategy, data.interleave_probs, seed)
            used = len(np.unique(order))
            self.notes.append(
                f"mix_strategy: {data.mix_strategy} makes {len(order)} rows of {used}; "
                f"{len(numbers) - used} are left out"
            )
            numbers, examples = numbers[order], examples[order]
        rows = self.rows("train", sets, numbers, examples)
        self.count(sets, numbers[rows.examples], rows, np.bincount(kept[0], minlength=len(sets)).tolist())
        return rows, Examples(sets, numbers, examples)

    def rows(self, name: str, sets: Sequence[Prepared], numbers: np.ndarray, examples: np.ndarray) -> EncodedSet:
        """The encoded rows of the chosen examples, and the report on them."""
        found = [np.flatnonzero(numbers == number) for number in range(len(sets))]
        places, owners = zip(
            *(rows_of(examples[mine], one.encoded) for one, mine in zip(sets, found, strict=True)), strict=True
        )
        owner = np.concatenate([mine[own] for mine, own in zip(found, owners, strict=True)])
        order = np.argsort(owner, kind="stable")
        place = np.concatenate(places)[order]
        number = np.repeat(np.arange(len(sets), dtype=np.int32), [len(p) for p in places])[order]
        whole = len(sets) == 1 and np.array_equal(place, np.arange(len(sets[0].encoded)))
        unchanged = whole and np.array_equal(owner[order], sets[0].encoded.examples)
        rows: EncodedSet = (
            sets[0].encoded if unchanged else ChosenRows([one.encoded for one in sets], number, place, owner[order])
        )
        report = self.report(name, sets, numbers, examples)
        if self.options.joins:
            rows = join_texts(rows, self.options.cutoff_len)
            report.notes.append(joined_note(len(examples), len(rows), self.options.cutoff_len))
        elif len(rows) > report.rows_out:
            report.notes.append(split_note(report.rows_out, len(rows)))
        self.reports.append(report)
        if not len(rows):
            raise RecipeError(f"dataset: no row is left to use for {name}{counted([report])}")
        return rows

    def report(self, name: str, sets: Sequence[Prepared], numbers: np.ndarray, examples: np.ndarray) -> RowReport:
        """What the encoder did to the chosen examples."""
        report = RowReport(f"encode {name}", rows_in=len(examples))
        for number, one in enumerate(sets):
            times = np.bincount(examples[numbers == number], minlength=len(one.prompts))
            for found, tell in ((one.outcome.rejected, report.reject), (one.outcome.fixed, report.fix)):
                for example, what in found:
                    for _ in range(int(times[example])):
                        tell(one.source(example), what)
        report.rows_out = report.rows_in - len(report.rejected)
        return report

    def count(self, sets: Sequence[Prepared], owners: np.ndarray, rows: EncodedSet, available: list[int]) -> None:
        """The table of the mixture, and which rows an epoch takes where it does not take each once."""
        data = self.recipe.data
        names = _names(sets)
        mine = [np.flatnonzero(owners == number) for number in range(len(sets))]
        sizes = [len(part) for part in mine]
        ordered = data.mix_strategy.startswith("interleave")
        counts = sizes if ordered else epoch_counts(names, sizes, data).tolist()
        taken = mine
        if data.mix_strategy in DRAWN or counts != sizes:
            sampled = EpochRows(mine, counts, self.recipe.train.seed)
            self.epoch_rows = sampled
            first = sampled(0)
            taken = [first[owners[first] == number] for number in range(len(sets))]
        self.mixture = mix_table(rows, list(zip(names, taken, available if ordered else sizes, strict=True)))

    def overlap(self, name: str, tested: Prepared, sets: Sequence[Prepared], kept: Chosen) -> None:
        """A note on evaluation rows whose prompt is also learned: their scores say little."""
        numbers, examples = kept
        learned = np.concatenate([one.prompts[examples[numbers == i]] for i, one in enumerate(sets)])
        known = int(np.isin(tested.prompts, learned).sum())
        if known:
            self.notes.append(f"{name}: {known} of {len(tested.prompts)} rows have a prompt that is also learned")


def _names(sets: Sequence[Prepared]) -> list[str]:
    """Names of data sets, told apart where one comes twice."""
    names: list[str] = []
    for one in sets:
        name = one.name
        while name in names:
            name += "_2"
        names.append(name)
    return names


def _unused_keys(recipe: Recipe) -> list[str]:
    """Notes on keys that change nothing, because encoded rows are memory-mapped and one process makes them."""
    notes = []
    if recipe.data.streaming:
        notes.append("streaming: rows are encoded before training and read from disk as they are needed")
    if (recipe.data.preprocessing_num_workers or 1) > 1:
        notes.append("preprocessing_num_workers: one process encodes, its tokenizer on all cores")
    return notes
