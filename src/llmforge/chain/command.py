"""`forge-cli train R` for a recipe with `chain:` or `sweep:`, and `forge-cli recipe check R` of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmforge.chain.check import CheckedLinks, check_links
from llmforge.chain.plan import read_chain
from llmforge.chain.run import Done, LinkRunner, failure, run_links, say
from llmforge.chain.sweep import read_sweep, table_of
from llmforge.config.given import refuse
from llmforge.config.kind import recipe_kind

# Metrics that the table of a chain shows, the first two that a link has.
TOLD = (
    "predict_exact_match",
    "predict_label_accuracy",
    "eval_accuracy",
    "eval_reward",
    "eval_loss",
    "reward",
    "train_loss",
)


def check(words: Sequence[str]) -> CheckedLinks:
    """All links of a chain, or all runs of a sweep, with nothing started.

    Raises:
        RecipeError: links that cannot be read; everything else is in `problems`.
    """
    if recipe_kind(words) == "chain":
        chain = read_chain(words)
        return check_links(chain.links, chain.files, chain.problems)
    sweep = read_sweep(words)
    return check_links(sweep.links, sweep.files)


def run_chain(words: Sequence[str]) -> int:
    """Run the links of a chain; the exit code is that of the link that ended it, 3 for a gate."""
    chain = read_chain(words)
    refuse_problems(check_links(chain.links, chain.files, chain.problems))
    runner = LinkRunner(chain.folder, chain.files, chain.overwrite)
    with runner.at_work(len(chain.links)):
        ended, code = run_links(runner, chain.links)
    print(text_table(["link", "command", "result", "seconds", "metrics", "folder"], [_row(done) for done in ended]))
    return code


def run_sweep(words: Sequence[str]) -> int:
    """Run every combination; one that fails is named in the table and the others go on."""
    as_json = "--json" in words
    sweep = read_sweep([word for word in words if word != "--json"])
    refuse_problems(check_links(sweep.links, sweep.files))
    runner = LinkRunner(sweep.folder, sweep.files, sweep.overwrite)
    ended: list[Done] = []
    with runner.at_work(len(sweep.links)):
        for number, link in enumerate(sweep.links):
            done = runner.run(link, number)
            ended.append(done)
            if done.exit_code:
                say(f"forge-cli: {failure(done)}")
            if done.state == "stopped":
                break
        code = next((done.exit_code for done in ended if done.exit_code), 0)
        runner.end(code, ended[-1].state == "stopped")
    columns, rows = table_of(sweep, ended)
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False))
    else:
        print(text_table(columns, rows))
    return code


def refuse_problems(checked: CheckedLinks) -> None:
    """Raises:
    RecipeError: what keeps a link from running, with its line.
    """
    for note in dict.fromkeys(checked.notes):
        say(f"note: {note}")
    if checked.problems:
        raise refuse(checked.files, checked.problems)


def text_table(columns: list[str], rows: list[list[Any]]) -> str:
    """Rows under their columns, numbers with four digits."""
    cells = [columns, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(done: Done) -> list[Any]:
    metrics = done.metrics
    shown = [f"{name} {metrics[name]:.4g}" for name in TOLD if name in metrics][:2]
    seconds = f"{done.elapsed_s:.0f}" if done.elapsed_s else "-"
    return [done.link.name, done.link.command, done.state, seconds, ", ".join(shown) or "-", str(done.link.folder)]
