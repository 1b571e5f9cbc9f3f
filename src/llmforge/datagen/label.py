"""mode: label: a teacher lists clues, reasons, then labels, several times; a label needs more than half of the votes.

Source of the prompt's order: Sun et al. 2023, Text Classification via Large Language Models (CARP), arXiv:2305.08377.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from llmforge.config.paths import bundled
from llmforge.data.files import read_rows
from llmforge.datagen.answer import check_schema, read_json
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.prompt import Prompt
from llmforge.datagen.session import GenerateResult, Session, open_session
from llmforge.datagen.task import Task, digest
from llmforge.datagen.work import end_entry
from llmforge.errors import RecipeError, nearest
from llmforge.runs import sha256_file

PROMPT = "configs/prompts/label.j2"
INSTRUCTION = "Choose the label of the text: {labels}."


def label_rows(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """Label every row of `label.rows`; with `label.gold` the counts hold a confusion matrix.

    Raises:
        RecipeError: rows or labels that cannot be read; a column that is missing.
    """
    labels = read_labels(Path(str(recipe.label.labels)))
    rows = rows_to_label(recipe, labels)[:preview]
    path = recipe.prompt or bundled(PROMPT)
    assert path is not None, f"{PROMPT} is shipped with Forge"
    prompt = Prompt.of_file(str(path), frozenset({"text", "labels", "row"}))
    votes = recipe.label.votes
    tasks = [_vote(recipe, prompt, labels, row, index, vote) for index, row in enumerate(rows) for vote in range(votes)]
    digests = {
        "seed": digest(recipe.seed),
        "label": digest([labels, recipe.label.field, votes]),
        "rows": sha256_file(Path(str(recipe.label.rows))),
        "prompt": digest(prompt.text),
    }
    session = open_session(recipe, digests)
    result = session.run(_ask_and_count(session, tasks, labels, rows), len(rows))
    if recipe.label.gold:
        ends = [row.end for row in session.ledger.history.rows.values() if row.end]
        result.counts["confusion"] = confusion(ends, recipe.label.gold)
    return result


async def _ask_and_count(
    session: Session, tasks: list[Task], labels: dict[str, str], rows: list[dict[str, Any]]
) -> str | None:
    stopped_by = await session.ask(tasks, _judge, len(tasks), in_parts=True)
    votes = session.recipe.label.votes
    for index, row in enumerate(rows):
        entry = _decision(session, labels, row, index, tasks[index * votes : (index + 1) * votes])
        if entry is not None and not session.ledger.history.row(entry["id"]).is_done:
            session.ledger.note(entry)
            session.work.write_row(entry["id"], session.ledger.history.row(entry["id"]))
    await session.ledger.append()
    return stopped_by


def read_labels(path: Path) -> dict[str, str]:
    """Labels with their meanings: a YAML mapping or list, or a text file of lines `name` or `name: meaning`.

    Raises:
        RecipeError: fewer than two labels, or one that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        given = yaml.safe_load(text) if path.suffix in (".yaml", ".yml", ".json") else text.split("\n")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"label.labels: {path} cannot be read: {error}") from None
    if isinstance(given, dict):
        return {str(name): str(meaning or "") for name, meaning in given.items()}
    pairs = [str(line).partition(": ") for line in given or [] if str(line).strip()]
    labels = {name.strip(): meaning.strip() for name, _, meaning in pairs}
    if len(labels) < 2 or len(labels) != len(pairs):
        raise RecipeError(f"label.labels: {path}: expected at least two labels, each once; got {', '.join(labels)}")
    return labels


def confusion(ends: list[dict[str, Any]], gold: str) -> dict[str, dict[str, int]]:
    """Counts of known label -> given label, "(none)" where there was no majority."""
    table: dict[str, Counter[str]] = {}
    for end in ends:
        known = str(column_of(end["record"]["slots"], gold))
        given = end["record"]["output"] if end["cause"] is None else "(none)"
        table.setdefault(known, Counter())[given] += 1
    return {known: dict(sorted(counts.items())) for known, counts in sorted(table.items())}


def column_of(row: Any, name: str) -> Any:
    """The value of a column, or None; `output.label` looks into a column that holds an object or its JSON text."""
    value = row
    for part in name.split("."):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def rows_to_label(recipe: DatasetRecipe, labels: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of `label.rows`.

    Raises:
        RecipeError: none there, a column that is missing, or a known label that is none.
    """
    path, field, gold = Path(str(recipe.label.rows)), recipe.label.field, recipe.label.gold
    found = []
    for number, row in read_rows(path, remark=lambda text: None):
        for key, column in (("field", field), ("gold", gold)):
            if column and column_of(row, column) is None:
                there = list(row) if isinstance(row, dict) else []
                raise RecipeError(
                    f"label.{key}: {path} row {number} has no column {column!r}.{nearest(column, there)} "
                    f"Present: {', '.join(there)}"
                )
        if gold and str(known := column_of(row, gold)) not in labels:
            raise RecipeError(f"label.gold: {path} row {number}: {known!r} is no label. Known: {', '.join(labels)}")
        found.append(row)
    if not found:
        raise RecipeError(f"label.rows: {path} has no rows")
    return found


def _vote(
    recipe: DatasetRecipe, prompt: Prompt, labels: dict[str, str], row: dict[str, Any], index: int, vote: int
) -> Task:
    text = prompt.render({"text": str(column_of(row, recipe.label.field)), "labels": labels, "row": row})
    properties = {
        "clues": {"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": 8},
        "reason": {"type": "string", "minLength": 1, "maxLength": 600},
        "label": {"enum": list(labels)},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    number = index * recipe.label.votes + vote
    return Task(number, f"{index:06d}-vote{vote}", vote, row, {}, ({"role": "user", "content": text},), schema)


def _judge(task: Task, text: str, finish_reason: str) -> dict[str, Any]:
    parsed = read_json(text, finish_reason)
    assert task.schema is not None
    check_schema(parsed.value, task.schema)
    return {**task.facts(), "out": parsed.value, "repaired": parsed.repaired}


def _decision(
    session: Session, labels: dict[str, str], row: dict[str, Any], index: int, votes: list[Task]
) -> dict[str, Any] | None:
    """The row's last word, once every vote is in."""
    parts = [session.ledger.history.row(task.id).part for task in votes]
    if any(part is None for part in parts):
        return None
    given = [part["record"]["out"] for part in parts if part is not None and part["cause"] is None]
    tally = Counter(vote["label"] for vote in given)
    label, count = tally.most_common(1)[0] if tally else ("", 0)
    base = {"id": f"{index:06d}", "index": index, "variant": None, "slots": row, "compute": {}}
    base["messages"] = list(votes[0].messages)
    failed = [part["cause"] for part in parts if part is not None and part["cause"] is not None]
    if count * 2 <= len(votes):
        said = ", ".join(f"{name} {number}" for name, number in tally.most_common())
        lost = next((cause for cause in failed if cause.startswith("teacher:")), None)
        return end_entry(base, lost or "no_majority", f"votes: {said or 'none'}; failed: {', '.join(failed) or 'none'}")
    return end_entry(
        {
            **base,
            "out": {"label": label, "agreement": round(count / len(votes), 4), "votes": given},
            "instruction": INSTRUCTION.format(labels=", ".join(labels)),
            "input": str(column_of(row, session.recipe.label.field)),
            "output": label,
            "repaired": any(part["record"].get("repaired") for part in parts if part is not None),
        }
    )
