"""`forge-cli data review`: look at rows, decide about them, exchange them with a spreadsheet, and see how it stands."""

from __future__ import annotations

import json
from pathlib import Path

from llmforge.datagen.agreement import ErrorRate
from llmforge.datagen.manifest import write_stage
from llmforge.datagen.review import Review
from llmforge.datagen.review_files import export_review, import_review
from llmforge.datagen.review_terminal import review_rows
from llmforge.datagen.step_words import read_step

USAGE = """\
forge-cli data review RECIPE|FILE   accept, edit or reject rows, one key each; decisions are kept in patches.jsonl

  --status           counts, error rate with its 95 % interval, agreement of reviewers; with --json for scripts
  --export PATH      all rows as .csv or .jsonl, for a spreadsheet or another tool
  --import PATH      take over what was changed there
  --author NAME      who decides (default: the environment variable that calibrate.reviewer_env names)
  --sample 0.1       review a random part;  --fields input,output  what is shown and edited
  $ forge-cli data review recipes/data/report_line.yaml --status"""
SHOWN = 5


def main(words: list[str]) -> int:
    """Review; with --export, --import or --status do that instead."""
    if "--help" in words or "-h" in words or not words:
        print(USAGE)
        return 0
    step = read_step(words, "calibrate", USAGE, actions=("export", "import", "author"), switches=("status",))
    review = Review.open(step.recipe, step.files)
    done: dict[str, object] = {}
    if path := step.actions.get("export"):
        done["exported"] = export_review(review, Path(path))
    elif path := step.actions.get("import"):
        done["imported"] = import_review(review, Path(path), step.actions.get("author") or review.reviewer())
    elif "status" not in step.actions:
        done["decided"] = review_rows(review, step.actions.get("author") or review.reviewer())
    summary = review.summary()
    if step.recipe.name and not step.files:
        write_stage(step.recipe.folder, "review", review.facts())
    if step.as_json:
        print(json.dumps({**done, **summary}, ensure_ascii=False))
    else:
        for what, value in done.items():
            print(f"{what}: {value}")
        print(told_summary(summary))
    return 0


def told_summary(summary: dict) -> str:
    """A review's summary for people."""
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items() if count)
    lines = [f"{summary['rows']} rows, {summary['sample']} in the sample: {states}"]
    if rate := summary.get("error_rate"):
        lines.append(str(ErrorRate(**rate)))
    for pair in summary["agreement"]:
        kappa = "undefined (both always say the same word)" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        first, second = pair["reviewers"]
        lines.append(
            f"{first} and {second}: {pair['rows']} rows in common, {pair['differ']} differ, Cohen's kappa {kappa}"
        )
    for stale in summary["stale"][:SHOWN]:
        lines.append(f"row {stale['id']} needs a new decision: {stale['why']}")
    if len(summary["stale"]) > SHOWN:
        lines.append(f"and {len(summary['stale']) - SHOWN} more rows need one")
    if lost := summary.get("decisions_without_row"):
        lines.append(f"{len(lost)} decisions are about rows that are no longer there: {', '.join(lost[:SHOWN])}")
    return "\n".join(lines)
