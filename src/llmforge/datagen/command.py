"""`forge-cli data generate R` (also `make`) and `forge-cli data label R`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from llmforge.datagen.generate import GenerateResult, estimate, generate
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.work import Work
from llmforge.errors import RecipeError

USAGE = """\
forge-cli data generate R [KEY=VALUE ...]   make the rows of a recipe of `kind: dataset`; `make` is the same
forge-cli data label R                      label rows by clue and reason; R has `mode: label`

A run that was stopped goes on where it was: accepted rows are neither lost nor asked again.
  --estimate    tokens and money, for every priced model; nothing is asked
  --preview N   ask for the first N rows and print them; they count as rows of the run
  --json        the result as one JSON object
  $ forge-cli data generate recipes/data/report_line.yaml"""


def main(words: Sequence[str]) -> int:
    """Generate, estimate or preview."""
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    rest, wants = _flags(words)
    recipe = load_dataset_recipe(rest)
    if wants["estimate"]:
        _show_estimate(estimate(recipe), wants["json"])
        return 0
    result = generate(recipe, wants["preview"])
    if wants["json"]:
        print(json.dumps({"folder": str(result.folder), **result.counts}, ensure_ascii=False))
    else:
        if wants["preview"]:
            _show_rows(result, wants["preview"])
        _show_result(recipe, result)
    return 0


def label(words: Sequence[str]) -> int:
    """`data label` is `data generate` for recipes with mode: label."""
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    return main([*words, "mode=label"])


def _flags(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The words of the recipe, and the flags among them."""
    rest: list[str] = []
    wants: dict[str, Any] = {"estimate": False, "json": False, "preview": None}
    left = iter(words)
    for word in left:
        name, equals, value = word.removeprefix("--").partition("=")
        if word in ("--estimate", "--json"):
            wants[name] = True
        elif word.startswith("--") and name == "preview":
            text = value if equals else next(left, "")
            if not text.isdigit() or int(text) < 1:
                raise RecipeError(f"--preview: got {text!r}, expected a number of rows")
            wants["preview"] = int(text)
        else:
            rest.append(word)
    return rest, wants


def _show_estimate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    basis = f"measured on {found['measured_rows']} rows" if found["measured_rows"] else "guessed; --preview 5 measures"
    print(
        f"{found['rows']} rows of about {found['tokens_in_per_row']:g} tokens in and "
        f"{found['tokens_out_per_row']:g} out ({basis})"
    )
    for name, usd in found["usd"].items():
        print(f"  {name:<28} {usd:>10.4f} USD")
    print(f"  prices of {found['prices_of']}; a model on this machine costs nothing")


def _show_rows(result: GenerateResult, number: int) -> None:
    for record in Work(result.folder).records():
        if record["index"] < number:
            shown = {key: record[key] for key in ("id", "instruction", "input", "output")}
            print(json.dumps(shown, ensure_ascii=False, indent=1))


def _show_result(recipe: DatasetRecipe, result: GenerateResult) -> None:
    counts = result.counts
    print(
        f"{recipe.name}: {counts['rows']} rows, {counts['accepted']} accepted, {counts['rejected']} rejected, "
        f"{counts['unanswered']} unanswered, {counts['open']} not asked; in {result.folder}"
    )
    for cause, count in counts["causes"].items():
        print(f"  {count:>6}  {cause}", file=sys.stderr)
    for slot, values in counts.get("short", {}).items():
        some = ", ".join(f"{value} {count}" for value, count in list(values.items())[:4])
        missing = some + (f" and {len(values) - 4} more" if len(values) > 4 else "")
        advice = "refill=2 asks for spares of rejected rows"
        print(f"{slot}: {sum(values.values())} rows short of its quota ({missing}); {advice}", file=sys.stderr)
    if "confusion" in counts:
        _show_confusion(counts["confusion"])
    print(f"{counts['tokens_in']} tokens in, {counts['tokens_out']} out, {counts['cost_usd']} USD", file=sys.stderr)


def _show_confusion(table: dict[str, dict[str, int]]) -> None:
    """Known labels down, given labels across."""
    columns = sorted({given for counts in table.values() for given in counts})
    width = max(map(len, [*columns, *table, "known"])) + 2
    print("known".ljust(width) + "".join(name.rjust(width) for name in columns))
    for known, counts in table.items():
        print(known.ljust(width) + "".join(str(counts.get(name, 0)).rjust(width) for name in columns))
    right = sum(counts.get(known, 0) for known, counts in table.items())
    print(f"{right} of {sum(sum(counts.values()) for counts in table.values())} as known")
