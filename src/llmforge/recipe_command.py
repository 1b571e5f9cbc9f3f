"""`forge-cli recipe`: show, check, explain, schema, new. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llmforge.config.checked import Checked
from llmforge.config.dump import nested, recipe_values, show_recipe
from llmforge.config.explain import explain
from llmforge.config.given import refuse
from llmforge.config.json_schema import recipe_schema
from llmforge.config.kind import recipe_kind
from llmforge.config.load import load_recipe
from llmforge.config.starters import STARTERS
from llmforge.errors import RecipeError, nearest

USAGE = """\
forge-cli recipe show R [--json]   the resolved recipe with the origin of every value
forge-cli recipe check R [--json]  everything that can be checked without loading the model
forge-cli recipe explain KEY       type, default, range, choices, meaning of a key
forge-cli recipe schema            JSON Schema of a recipe, for editors
forge-cli recipe new JOB [FILE]    a recipe to begin with; JOB: {jobs}

R is a recipe file, several, or a run folder; key=value after it overrides.
  $ forge-cli recipe check recipes/classify_lora.yaml learning_rate=1e-4"""


def main(words: list[str]) -> int:
    """Run one subcommand; returns the exit code."""
    if not words or words[0] in ("--help", "-h") or "--help" in words:
        print(USAGE.format(jobs=", ".join(STARTERS)))
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise RecipeError(f"recipe: {name!r} is no subcommand.{nearest(name, COMMANDS)} Known: {', '.join(COMMANDS)}")
    return COMMANDS[name](rest)


def show(words: list[str]) -> int:
    rest = [word for word in words if word != "--json"]
    text, notes = SHOWS.get(recipe_kind(rest), _show_run)(rest, "--json" in words)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(text.rstrip("\n"))
    return 0


def _show_run(words: list[str], as_json: bool) -> tuple[str, Sequence[str]]:
    recipe = load_recipe(words, "show")
    if not as_json:
        return show_recipe(recipe), recipe.notes
    origins = {key: origin.text for key, origin in recipe.origins.items()}
    seen = {"recipe": nested(recipe_values(recipe)), "origins": origins}
    return json.dumps(seen, ensure_ascii=False, indent=2), recipe.notes


def _show_links(words: list[str], as_json: bool) -> tuple[str, Sequence[str]]:
    from llmforge.chain.show import show_links, show_links_as_json

    return show_links_as_json(words) if as_json else show_links(words)


def check(words: list[str]) -> int:
    rest = [word for word in words if word != "--json"]
    result = CHECKS[recipe_kind(rest)](rest)
    if "--json" in words:
        problems = [f"{p.origin.text}: {p.message}" if p.origin else p.message for p in result.problems]
        seen = {
            "notes": result.notes,
            "fine": result.fine,
            "remarks": result.remarks,
            "not_checked": result.not_checked,
        }
        print(json.dumps(seen | {"problems": problems}, ensure_ascii=False, indent=2))
        return 2 if problems else 0
    for mark, lines in (
        ("note", result.notes),
        ("ok", result.fine),
        ("look", result.remarks),
        ("not checked", result.not_checked),
    ):
        for line in lines:
            print(f"{mark}: {line}")
    if result.problems:
        raise refuse(result.files, result.problems)
    print("the recipe can run")
    return 0


def _check_run(words: list[str]) -> Checked:
    recipe = load_recipe(words, "check")
    from llmforge.check import check_recipe  # behind the load, so that a wrong recipe is refused sooner

    return check_recipe(recipe)


def _check_dataset(words: list[str]) -> Checked:
    from llmforge.datagen.check import check_dataset

    return check_dataset(words)


def _check_links(words: list[str]) -> Checked:
    from llmforge.chain.command import check as check_links

    return check_links(words)


def explain_key(words: list[str]) -> int:
    if not words:
        raise RecipeError("recipe explain needs a key: forge-cli recipe explain learning_rate")
    print("\n\n".join(explain(word) for word in words))
    return 0


def schema(words: list[str]) -> int:
    print(json.dumps(recipe_schema(), ensure_ascii=False, indent=2))
    return 0


def new(words: list[str]) -> int:
    if not words:
        raise RecipeError(f"recipe new needs a job: {', '.join(STARTERS)}")
    job = words[0]
    if job not in STARTERS:
        raise RecipeError(f"recipe new: {job!r} is no job.{nearest(job, STARTERS)} Known: {', '.join(STARTERS)}")
    text = STARTERS[job]
    if len(words) == 1:
        print(text, end="")
        return 0
    path = Path(words[1])
    if path.exists():
        raise RecipeError(f"{path} exists already; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0


CHECKS: dict[str, Callable[[list[str]], Checked]] = {
    "run": _check_run,
    "dataset": _check_dataset,
    "chain": _check_links,
    "sweep": _check_links,
}
SHOWS: dict[str, Callable[[list[str], bool], tuple[str, Sequence[str]]]] = {"chain": _show_links, "sweep": _show_links}
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "show": show,
    "check": check,
    "explain": explain_key,
    "schema": schema,
    "new": new,
}
