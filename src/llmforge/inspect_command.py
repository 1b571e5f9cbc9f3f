"""`forge-cli data check|stats|show|coverage`: look at data sets before anything learns from them. No torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from llmforge.config.load import load_recipe
from llmforge.config.schema import Recipe
from llmforge.data.coverage import coverage as count_values
from llmforge.data.encode import EncodeOptions, encode_examples
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import Example, RowReport
from llmforge.data.files import data_files, kind_of, read_rows
from llmforge.data.gather import eval_readings, train_readings
from llmforge.data.inspect import Findings, inspect_set, measure, natural_stage
from llmforge.data.inspect_text import check_lines, coverage_lines, stats_lines
from llmforge.data.leakage import find_leaks
from llmforge.data.marked import show_labels, spans
from llmforge.data.prepare import Reading
from llmforge.data.registry import INFO_NAME, load_registry
from llmforge.data.templates.find import get_template
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer, load_tokenizer
from llmforge.errors import RecipeError
from llmforge.model.sources import local_folder
from llmforge.model.vocabulary import tokenizer_folder

USAGE = """\
forge-cli data check R       read every row: rejected rows by reason, duplicates, labels, lengths, leaks, lookups
forge-cli data stats R       rows, turns, tokens, learned share of each data set
forge-cli data show R        rows as the model sees them, what is trained between ⟦ and ⟧ (--row N, --rows K)
forge-cli data coverage R --field F [--min N] [--values A,B or FILE]   rows per value; exit 3 below the minimum
forge-cli data build R       prepare the data sets of a recipe now, so that training finds them

R is a recipe, key=value, data files, or a dataset_info.json, which stands for all its entries. --json for scripts.
Lengths and trained tokens need a model (or a folder with its tokenizer) and a template:
  $ forge-cli data check recipes/classify_lora.yaml
  $ forge-cli data check data/my_rows.jsonl model_name_or_path=models/qwen template=qwen
  $ forge-cli data coverage data/my_rows.jsonl --field output.label --min 50"""
FINE, WRONG, TOO_FEW = 0, 2, 3  # exit codes
Flags = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True)
class Asked:
    """What stands behind a subcommand: the recipe, its data sets, what is left out and why, and flags."""

    recipe: Recipe
    train: list[Reading]
    evals: list[Reading]
    left_out: list[str]
    flags: argparse.Namespace


@dataclass(frozen=True)
class Encoder:
    """How the recipe turns examples into tokens."""

    tokenizer: Tokenizer
    template: Template
    options: EncodeOptions


def check(words: list[str]) -> int:
    """Every row of every data set; 2 when one cannot be read at all."""
    asked = ask("check", words)
    if asked is None:
        return FINE
    encoder = encoder_if_here(asked.recipe)
    broken: list[dict[str, Any]] = []
    train = _inspect(asked.train, encoder, broken)
    evals = _inspect(asked.evals, encoder, broken)
    learned = [example for found in train for example in found.examples]
    for found in evals:
        found.leaks = find_leaks(learned, found.examples)
    if asked.flags.json:
        for one in (*(found.as_dict() for found in (*train, *evals)), *broken):
            print(json.dumps(one, ensure_ascii=False))
    else:
        for found in (*train, *evals):
            print("\n".join(check_lines(found)))
    for line in (*asked.left_out, *(one["error"] for one in broken)):
        print(f"not checked: {line}", file=sys.stderr)
    return WRONG if broken else FINE


def stats(words: list[str]) -> int:
    """Numbers of each data set."""
    asked = ask("stats", words)
    if asked is None:
        return FINE
    broken: list[dict[str, Any]] = []
    for found in _inspect([*asked.train, *asked.evals], encoder_if_here(asked.recipe), broken):
        told = {"name": found.name, "rows": len(found.examples), **found.shape, "labels": found.labels}
        told["lengths"] = found.lengths
        print(json.dumps(told, ensure_ascii=False) if asked.flags.json else "\n".join(stats_lines(found)))
    for one in broken:
        print(f"not read: {one['error']}", file=sys.stderr)
    return WRONG if broken else FINE


def show(words: list[str]) -> int:
    """Some rows as the model sees them."""

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--row", type=int)
        parser.add_argument("--rows", type=int, default=1)

    asked = ask("show", words, flags)
    if asked is None:
        return FINE
    encoder = load_encoder(asked.recipe, "show")
    for reading in (*asked.train, *asked.evals):
        for example in _chosen(reading, asked.flags.row, asked.flags.rows):
            _show(example, encoder, asked.flags.json)
    return FINE


def coverage(words: list[str]) -> int:
    """Rows per value of a field; 3 when one has too few."""

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--field", required=True)
        parser.add_argument("--min", type=int, default=1)
        parser.add_argument("--values", default="")

    asked = ask("coverage", words, flags)
    if asked is None:
        return FINE
    if asked.flags.min < 1:
        raise RecipeError(f"data coverage: --min: got {asked.flags.min}, expected a whole number above 0")
    readings = asked.train or asked.evals  # what is learned counts; a recipe may also name nothing but a test set
    rows = (row for reading in readings for row in _raw_rows(reading.entry))
    found = count_values(rows, asked.flags.field, asked.flags.min, _expected(asked.flags.values))
    if found.rows and found.missing == found.rows:
        raise RecipeError(f"data coverage: --field: no row of {readings[0].entry.where} has {asked.flags.field!r}")
    print(json.dumps(found.as_dict(), ensure_ascii=False) if asked.flags.json else "\n".join(coverage_lines(found)))
    return FINE if found.enough else TOO_FEW


def ask(command: str, words: Sequence[str], more: Flags | None = None) -> Asked | None:
    """Read what stands behind a subcommand; None when help was asked for and printed.

    Raises:
        RecipeError: no data set, or one that is neither an entry nor a file.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return None
    parser = _Parser(prog=f"forge-cli data {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    if more:
        more(parser)
    flags, rest = parser.parse_known_args(list(words))
    files = [word for word in rest if _is_data(word)]
    infos = [word for word in rest if Path(word).name == INFO_NAME]
    rest = [word for word in rest if word not in (*files, *infos)]
    rest += [f"dataset_dir={infos[-1]}"] if infos else []
    recipe = load_recipe([*rest, f"dataset={json.dumps(files)}"] if files else rest, "show")
    stage = recipe.finetune.stage if "stage" in recipe.origins else None
    left_out: list[str] = []
    if recipe.data.dataset or recipe.data.eval_dataset:
        train = train_readings(recipe, "sft")
        evals = list(eval_readings(recipe, "sft").values())
    else:
        train, evals = _registered(recipe, left_out), []
    if not train and not evals:
        raise RecipeError(f"data {command}: nothing to look at; name a recipe, dataset=..., or a data file")
    train, evals = ([replace(one, stage=stage or natural_stage(one.entry)) for one in sets] for sets in (train, evals))
    return Asked(recipe, train, evals, left_out, flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{self.prog.removeprefix('forge-cli ')}: {message}\n{USAGE}")


def _is_data(word: str) -> bool:
    """Whether a word is a data file or folder, and not a recipe, which may be JSON too."""
    path = Path(word)
    if "=" in word or path.name == INFO_NAME or not path.is_file() or kind_of(path) is None:
        return False
    if path.suffix.lower() != ".json":
        return True
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read(200).lstrip().startswith("[")


def _registered(recipe: Recipe, left_out: list[str]) -> list[Reading]:
    """All entries of the registry whose files are here."""
    found: list[Reading] = []
    on_hub, absent = [], []
    for entry in load_registry(recipe.data.dataset_dir).values():
        if entry.path is None:
            on_hub.append(entry.name)
        elif not entry.path.exists():
            absent.append(f"{entry.name} ({entry.path})")
        else:
            found.append(Reading(entry, "sft", recipe.data.max_samples, recipe.train.seed))
    left_out += [f"{len(on_hub)} entries are on a hub: {', '.join(on_hub)}"] if on_hub else []
    left_out += [f"{len(absent)} entries have no file here: {', '.join(absent)}"] if absent else []
    return found


def encoder_if_here(recipe: Recipe) -> Encoder | None:
    """`load_encoder`, or None and a remark where the recipe names no model, or one that is not fetched yet."""
    name = recipe.model.model_name_or_path
    if name and local_folder(recipe.model):
        return load_encoder(recipe, "check")
    why = f"{name} is not fetched yet: forge-cli models get {name}" if name else "name a model: model_name_or_path=..."
    print(f"tokens are not counted; {why}", file=sys.stderr)
    return None


def load_encoder(recipe: Recipe, command: str) -> Encoder:
    """Tokenizer, template and options of the recipe.

    Raises:
        RecipeError: no model is named, it is not here yet, or the template does not fit it.
    """
    name = recipe.model.model_name_or_path
    if not name:
        raise RecipeError(f"data {command}: model_name_or_path: missing; name a model or a folder with its tokenizer")
    folder = local_folder(recipe.model)
    if folder is None:
        raise RecipeError(f"model_name_or_path: {name} is not fetched yet: forge-cli models get {name}")
    data = recipe.data
    tokenizer = load_tokenizer(tokenizer_folder(recipe.model, folder))
    template = get_template(
        data.template,
        tokenizer,
        default_system=data.default_system,
        enable_thinking=data.enable_thinking,
        tool_format=data.tool_format,
    )
    policy = LabelPolicy(data.train_on_prompt, data.mask_history)
    stage = recipe.finetune.stage
    return Encoder(tokenizer, template, EncodeOptions(stage, policy, data.cutoff_len, data.truncation, data.packing))


def _inspect(readings: list[Reading], encoder: Encoder | None, broken: list[dict[str, Any]]) -> list[Findings]:
    """Findings of all data sets that can be read; the others go to `broken`."""
    sets = []
    for reading in readings:
        try:
            found = inspect_set(reading)
            if encoder:
                options = replace(encoder.options, stage="pt" if reading.stage == "pt" else "sft")
                found.lengths = measure(found, encoder.template, encoder.tokenizer, options)
            sets.append(found)
        except RecipeError as error:
            broken.append({"name": reading.entry.name, "where": reading.entry.where, "error": str(error)})
    return sets


def _chosen(reading: Reading, row: int | None, count: int) -> list[Example]:
    """Row number `row` of the file, or the first rows."""
    report = RowReport("show")
    examples: Iterator[Example] = reading.examples(report)
    if row is None:
        return list(islice(examples, count))
    found = [example for example in examples if example.source.row == row]
    if not found:
        reasons = [f": {reason}" for source, reason in report.rejected if source.row == row]
        raise RecipeError(f"{reading.entry.where}: row {row} is not usable{''.join(reasons) or ': there is none'}")
    return found


def _show(example: Example, encoder: Encoder, as_json: bool) -> None:
    """One example as the rows it becomes, or why it becomes none."""
    whole = replace(example, messages=(*example.messages, example.chosen)) if example.chosen else example
    options = replace(encoder.options, stage="sft" if example.text is None else "pt", packing=False)
    rows, report = encode_examples(
        [whole],
        encoder.template,
        encoder.tokenizer,
        stage=options.stage,
        policy=options.policy,
        cutoff_len=options.cutoff_len,
        truncation=options.truncation,
        packing=False,
    )
    told = {"dataset": example.dataset, "file": example.source.file, "row": example.source.row}
    remarks = [what for _, what in (*report.rejected, *report.fixed)]
    for number, row in enumerate(rows):
        numbers = {"tokens": len(row.input_ids), "learned": int(rows.learned[number])}
        if as_json:
            found = [span._asdict() for span in spans(encoder.tokenizer, row)]
            print(json.dumps({**told, **numbers, "spans": found, "remarks": remarks}, ensure_ascii=False))
            continue
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(
            f"{example.source}: {numbers['tokens']} tokens, {numbers['learned']} learned {'; '.join(remarks)}".rstrip()
        )
        print(show_labels(encoder.tokenizer, row, colour))
    if not len(rows):
        print(json.dumps({**told, "remarks": remarks}) if as_json else f"{example.source}: rejected: {remarks[0]}")


def _raw_rows(entry: DatasetEntry) -> Iterator[dict[str, Any]]:
    """The rows as the file has them."""
    if entry.path is None:
        raise RecipeError(f"data coverage: {entry.name!r} is on a hub; fetch it as a file first")
    for path in data_files(entry.path):
        for _, row in read_rows(path, _remark, document=entry.document):
            if isinstance(row, dict):
                yield row


def _remark(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _expected(values: str) -> list[str]:
    """Values from the command line, or from a file, one a line."""
    if values and Path(values).is_file():
        lines = Path(values).read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return [value.strip() for value in values.split(",") if value.strip()]
