"""`forge-cli data clean|split|merge|dedupe|diversify|contamination`: a step over the rows of files, with its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge.config.schema import ModelConfig
from llmforge.data.example import RowRef, RowReport
from llmforge.data.tokenizer import load_tokenizer
from llmforge.datagen.clean import clean_rows
from llmforge.datagen.contamination import find_leaks
from llmforge.datagen.dedupe import find_copies, find_copies_of
from llmforge.datagen.diversify import diversify as choose_rows
from llmforge.datagen.merge import merge_rows
from llmforge.datagen.row_files import Row, asked_text, compared_text, read_files, told, write_jsonl
from llmforge.datagen.split_long import Count, split_rows
from llmforge.datagen.step_words import StepWords, read_step
from llmforge.errors import RecipeError
from llmforge.model.sources import local_folder

CLEAN = """\
forge-cli data clean FILE... [--out PATH]   mend conversations copied from the web, leave out those not fit for training

  --min_chars 16  --blocked openai,chatgpt  --keep_lang zh,en  --skip_lang ja  --html auto|keep  --json
  $ forge-cli data clean chats.json --out clean.jsonl"""
SPLIT = """\
forge-cli data split FILE... [--out PATH]   cut long conversations into parts of whole rounds

  --max_tokens 2048  --model MODEL (whose tokenizer counts; without one characters are counted)  --overhead 6  --json
  $ forge-cli data split chats.jsonl --max_tokens 1024 --model models/qwen --out parts.jsonl"""
MERGE = """\
forge-cli data merge FILE... [--out PATH]   several files as one, equal rows once

  --json
  $ forge-cli data merge a.jsonl b.jsonl --out all.jsonl"""
DEDUPE = """\
forge-cli data dedupe FILE... [--out PATH]   leave out exact and near copies

  --field instruction+input (default: all texts)  --max 0.9  --against test.jsonl  --json
  $ forge-cli data dedupe train.jsonl --max 0.9 --out unique.jsonl"""
DIVERSIFY = """\
forge-cli data diversify FILE... [--out PATH]   keep the least similar rows

  --keep 0.5  --field input (default: the user's turns)  --near 0.8  --clusters 256  --json
  $ forge-cli data diversify logs.jsonl --keep 0.5 --out half.jsonl"""
CONTAMINATION = """\
forge-cli data contamination TRAIN... --test FILE,...   test rows that training rows give away; exit code 3 if any

  --ngram 13  --common 10  --max 0.9  --field input  --allowed 0  --json
  $ forge-cli data contamination train.jsonl --test test.jsonl"""
SHOWN = 5
Rows = list[tuple[RowRef, Row]]


def clean(words: list[str]) -> int:
    """Clean conversations."""
    if _asks_help(words):
        return _help(CLEAN)
    step, rows, report = _read(words, "clean", CLEAN)
    kept = clean_rows(rows, step.recipe.clean, report)
    return _finish(step, [row for _, row in kept], report, "clean")


def split(words: list[str]) -> int:
    """Cut long conversations."""
    if _asks_help(words):
        return _help(SPLIT)
    step, rows, report = _read(words, "split", SPLIT)
    config = step.recipe.split
    parts, left_out = split_rows(rows, _counter(config.model), config, report)
    return _finish(step, parts, report, "split", rounds_left_out=left_out)


def merge(words: list[str]) -> int:
    """Join files."""
    if _asks_help(words):
        return _help(MERGE)
    step, rows, report = _read(words, "convert", MERGE)
    return _finish(step, merge_rows(rows, report), report, "merge")


def dedupe(words: list[str]) -> int:
    """Leave out copies."""
    if _asks_help(words):
        return _help(DEDUPE)
    step, rows, report = _read(words, "near", DEDUPE)
    config = step.recipe.near
    texts = [compared_text(row, config.field) for _, row in rows]
    copies = {copy.row: (copy, rows[copy.of][0]) for copy in find_copies(texts, config.max)}
    if config.against:
        others = list(read_files([Path(name) for name in config.against], RowReport("against")))
        against = find_copies_of(texts, [compared_text(row, config.field) for _, row in others], config.max)
        copies.update({copy.row: (copy, others[copy.of][0]) for copy in against})
    for number, (copy, source) in sorted(copies.items()):
        report.reject(rows[number][0], f"a copy of {source}, similarity {copy.similarity:.2f}")
    kept = [row for number, (_, row) in enumerate(rows) if number not in copies]
    report.rows_out = len(kept)
    exact = sum(copy.similarity == 1 for copy, _ in copies.values())
    return _finish(step, kept, report, "dedupe", exact=exact, near=len(copies) - exact)


def diversify(words: list[str]) -> int:
    """Keep the least similar rows."""
    if _asks_help(words):
        return _help(DIVERSIFY)
    step, rows, report = _read(words, "diversify", DIVERSIFY)
    config = step.recipe.diversify
    texts = [compared_text(row, config.field) if config.field else asked_text(row) for _, row in rows]
    chosen = choose_rows(texts, config.keep, config.clusters, config.near)
    copies = dict(chosen.copies)
    kept = set(chosen.kept)
    for number, (source, _) in enumerate(rows):
        if number not in kept:
            copied = number in copies
            report.reject(source, f"a near copy of {rows[copies[number]][0]}" if copied else "like rows that are kept")
    report.rows_out = len(kept)
    before, after = round(chosen.similarity_before, 4), round(chosen.similarity_after, 4)
    report.notes.append(f"mean similarity to the nearest row: {before} before, {after} after")
    report.notes.append(f"{len(chosen.clusters)} clusters (size, kept): {chosen.clusters[:SHOWN]}")
    facts = {"similarity_before": before, "similarity_after": after, "clusters": chosen.clusters}
    return _finish(step, [rows[number][1] for number in chosen.kept], report, "diversify", **facts)


def contamination(words: list[str]) -> int:
    """Name test rows that training rows give away; 3 when there are more than allowed."""
    if _asks_help(words):
        return _help(CONTAMINATION)
    step, rows, _ = _read(words, "contamination", CONTAMINATION)
    config = step.recipe.contamination
    if not config.test:
        raise RecipeError(f"data contamination: which test files? Say --test FILE\n{CONTAMINATION}")
    tests = list(read_files([Path(name) for name in config.test], RowReport("test")))
    leaks = find_leaks(
        [compared_text(row, config.field) for _, row in rows],
        [compared_text(row, config.field) for _, row in tests],
        ngram=config.ngram,
        common=config.common,
        max_similarity=config.max,
    )
    found: list[dict[str, Any]] = [
        {"test": str(tests[x.test][0]), "train": str(rows[x.train][0]), "how": x.how, "share": round(x.share, 4),
         "example": x.example}
        for x in leaks
    ]  # fmt: skip
    if step.as_json:
        facts = {"train_rows": len(rows), "test_rows": len(tests), "contaminated": len(leaks), "leaks": found}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print(f"{len(leaks)} of {len(tests)} test rows are given away by {len(rows)} training rows")
        for leak in found[: SHOWN * 4]:
            print(f"  {leak['test']} by {leak['train']}: {leak['how']}, {leak['share']:.0%}: {leak['example']}")
    return 3 if len(leaks) > config.allowed else 0


def _asks_help(words: Sequence[str]) -> bool:
    return not words or "--help" in words or "-h" in words


def _help(usage: str) -> int:
    print(usage)
    return 0


def _read(words: list[str], group: str, usage: str) -> tuple[StepWords, Rows, RowReport]:
    """The step's words and the rows of its files, or of those that `convert.file` names."""
    step = read_step(words, group, usage, actions=("out",))
    files = step.files or [Path(name) for name in step.recipe.convert.file]
    if not files:
        raise RecipeError(f"data {usage.split()[2]}: no data file is named\n{usage}")
    report = RowReport(usage.split()[2])
    return step, list(read_files(files, report)), report


def _finish(step: StepWords, rows: list[Row], report: RowReport, name: str, **facts: Any) -> int:
    """Write the rows and tell what happened."""
    files = step.files or [Path(file) for file in step.recipe.convert.file]
    out = Path(step.actions.get("out") or files[0].with_name(f"{files[0].name.split('.')[0]}_{name}.jsonl"))
    if out.suffix != ".jsonl":
        raise RecipeError(f"--out: {out}: expected a .jsonl file")
    if any(out.resolve() == file.resolve() for file in files):
        raise RecipeError(f"--out: {out} is what is read; choose another name")
    write_jsonl(out, rows)
    if step.as_json:
        print(json.dumps({"out": str(out), **report.as_dict(), **facts}, ensure_ascii=False))
    else:
        print(told(report))
        print(f"{out}: {len(rows)} rows")
    return 0


def _counter(model: str | None) -> Count:
    """A text's length: tokens of the model's tokenizer, or characters."""
    if model is None:
        return len
    folder = Path(model) if Path(model).exists() else local_folder(ModelConfig(model_name_or_path=model))
    if folder is None:
        raise RecipeError(f"--model: {model} is not fetched yet: forge-cli models get {model}")
    tokenizer = load_tokenizer(folder)
    return lambda text: len(tokenizer.ids(text))
