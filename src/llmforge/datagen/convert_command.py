"""`forge-cli data convert` and `data add`: from files and accepted rows to registered training files."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from llmforge.data.entry import Columns, Tags, read_entry
from llmforge.data.example import RowReport
from llmforge.data.recognise import recognise
from llmforge.data.registry import resolve_dataset
from llmforge.datagen.convert import convert
from llmforge.datagen.register import add_entries, file_name_in, registry_path
from llmforge.datagen.row_files import read_files, told
from llmforge.datagen.step_words import read_step
from llmforge.errors import RecipeError

CONVERT_USAGE = """\
forge-cli data convert RECIPE|FILE... [--KEY VALUE]   write training files, and their entry in dataset_info.json

A recipe of `kind: dataset` converts its accepted rows as its group `convert` says; files are converted as flags say:
  --map "{user: title, assistant: reply}"  --append_question if_different  --where "is_best == '1'"  --group title
  --to alpaca|conversations|messages|sharegpt|text  --split "{dev: 0.1, test: 0.1, group_by: title}"  --out FOLDER
  --name NAME  --register data/dataset_info.json  --json
  $ forge-cli data convert data/legal_faq.csv --map "{user: title, assistant: reply}" --group title --out out"""
ADD_USAGE = """\
forge-cli data add NAME FILE [--register data]   describe a file in dataset_info.json by its first rows

  --replace true     take over a name that stands for another file
  --stage STAGE      the rows' use: sft (default), pt, dpo, rm, kto
  --json             print the entry
  $ forge-cli data add my_chats chats.jsonl --register data"""


def convert_main(words: list[str]) -> int:
    """Convert; prints the files and what happened to the rows."""
    if "--help" in words or "-h" in words or not words:
        print(CONVERT_USAGE)
        return 0
    step = read_step(words, "convert", CONVERT_USAGE)
    result = convert(step.recipe, step.files)
    if step.as_json:
        print(json.dumps(result.as_dict(), ensure_ascii=False))
        return 0
    print(told(result.report))
    for name, path in result.files.items():
        print(f"{path}: {result.rows[name]} rows")
    if result.registry:
        print(f"{result.registry}: {', '.join(result.files)}")
    return 0


def add_main(words: list[str]) -> int:
    """Register a file under a name, described by its first rows."""
    if "--help" in words or "-h" in words or not words:
        print(ADD_USAGE)
        return 0
    plain = [word for word in words if not word.startswith("--")]
    options = _add_options(words, plain)
    if len(plain) != 2:
        raise RecipeError(f"data add: expected a name and a file\n{ADD_USAGE}")
    name, file = plain[0], Path(plain[1])
    registry = options.get("register", "data")
    entry = describe(file, registry, options.get("stage", "sft"))
    read_entry(name, entry, registry_path(registry).parent)
    new = add_entries(registry, {name: entry}, replace=options.get("replace") == "true")
    if "json" in options:
        print(json.dumps({"name": name, "entry": entry, "new": bool(new)}, ensure_ascii=False))
    else:
        shown = json.dumps(entry, ensure_ascii=False)
        print(f"{registry_path(registry)}: {name} {'added' if new else 'renewed'}: {shown}")
    return 0


def describe(file: Path, registry: str | Path, stage: str = "sft") -> dict[str, Any]:
    """The entry of a file, recognised by its first rows.

    Raises:
        RecipeError: no such file, or rows whose columns say nothing.
    """
    if not file.exists():
        raise RecipeError(f"data add: no file {str(file)!r}")
    rows = [row for _, row in islice(read_files([file], RowReport("add")), 100)]
    if not rows:
        raise RecipeError(f"data add: {file} has no rows")
    found, _ = recognise(resolve_dataset(str(file), {}), rows, stage)
    entry: dict[str, Any] = {"file_name": file_name_in(registry, file)}
    if found.formatting != "alpaca":
        entry["formatting"] = found.formatting
    if found.ranking:
        entry["ranking"] = True
    for key, values, defaults in (("columns", found.columns, Columns()), ("tags", found.tags, Tags())):
        differ = {name: value for name, value in vars(values).items() if value != getattr(defaults, name)}
        if differ:
            entry[key] = differ
    return entry


def _add_options(words: list[str], plain: list[str]) -> dict[str, str]:
    """`--key value` and `--json`; takes the values out of `plain`."""
    options: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--json":
            options["json"] = ""
        elif word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if key not in ("register", "replace", "stage"):
                raise RecipeError(f"data add: no option {word!r}\n{ADD_USAGE}")
            if not equals:
                if not rest:
                    raise RecipeError(f"data add: {word} needs a value\n{ADD_USAGE}")
                value = rest.pop(0)
                plain.remove(value)
            options[key] = value
    return options
