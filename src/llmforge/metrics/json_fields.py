"""JSON answers: are they valid, are they the same, and which fields are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmforge.config.schema import EvalConfig
from llmforge.errors import RecipeError
from llmforge.metrics.json_text import JsonAnswer, leaves, parse_json
from llmforge.metrics.scores import Scores, Table, f1, mean, ratio

COLUMNS = ["field", "reference", "predicted", "right", "missing", "extra", "precision", "recall", "f1"]


def json_scores(predictions: Sequence[str], labels: Sequence[str], options: EvalConfig) -> Scores:
    """Validity, equality and fields of JSON objects or arrays.

    Each leaf counts as one (path, value); list positions become `[*]`, so a list's items match in any order. A
    prediction that is no JSON has no fields, so it costs recall and not precision. Values: `json_valid`, `json_exact`
    (the same object), and over the leaves of all rows `json_field_precision`, `json_field_recall`, `json_field_f1`.
    The table `fields` holds one line per path: leaves in the references, in the predictions, equal ones, those a
    prediction lacks and those it has too many.

    Raises:
        RecipeError: no reference is a JSON object or array.
    """
    references = [parse_json(text) for text in labels]
    if labels and not any(references):
        raise RecipeError(f"metrics: json needs JSON references, but the first one is {labels[0][:80]!r}")
    if not labels:
        return Scores()

    totals: dict[str, Counter[str]] = {}  # path -> reference, predicted, right, missing, extra
    per_row: list[dict[str, Any]] = []
    for text, reference in zip(predictions, references, strict=True):
        per_row.append({} if reference is None else _score_row(parse_json(text), reference, totals))
    scored = [row for row in per_row if row]
    whole = sum(totals.values(), Counter())
    precision, recall = ratio(whole["right"], whole["predicted"]), ratio(whole["right"], whole["reference"])
    scores = Scores(
        values={
            "json_valid": mean(row["json_valid"] for row in scored),
            "json_exact": mean(row["json_exact"] for row in scored),
            "json_field_precision": precision,
            "json_field_recall": recall,
            "json_field_f1": f1(precision, recall),
        },
        per_row=per_row,
        tables={"fields": Table(COLUMNS, [_line(path, count) for path, count in totals.items()])},
    )
    if left_out := len(labels) - len(scored):
        scores.notes.append(f"json: {left_out} of {len(labels)} references are no JSON and are not counted")
    return scores


def _score_row(answer: JsonAnswer | None, reference: JsonAnswer, totals: dict[str, Counter[str]]) -> dict[str, Any]:
    """Compare one answer with its reference and add its counts to `totals`."""
    wanted = Counter(leaves(reference.value))
    given = Counter(leaves(answer.value)) if answer else Counter()
    right = wanted & given
    row: dict[str, Any] = {
        "json_valid": answer is not None,
        "json_exact": answer is not None and answer.canonical == reference.canonical,
        "missing_fields": [],
        "extra_fields": [],
        "wrong_fields": [],
    }
    in_wanted, in_given, in_right = (Counter(path for path, _ in found.elements()) for found in (wanted, given, right))
    for path in in_wanted | in_given:
        w, g, r = in_wanted[path], in_given[path], in_right[path]
        totals.setdefault(path, Counter()).update(
            reference=w, predicted=g, right=r, missing=max(0, w - g), extra=max(0, g - w)
        )
        row["missing_fields"] += [path] * (w > g)
        row["extra_fields"] += [path] * (g > w)
        row["wrong_fields"] += [path] * (min(w, g) > r)
    precision, recall = ratio(right.total(), given.total()), ratio(right.total(), wanted.total())
    row["json_field_f1"] = f1(precision, recall)
    return row


def _line(path: str, count: Counter[str]) -> list[Any]:
    precision, recall = ratio(count["right"], count["predicted"]), ratio(count["right"], count["reference"])
    return [path, *(count[name] for name in COLUMNS[1:6]), precision, recall, f1(precision, recall)]
