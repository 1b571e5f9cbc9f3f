"""What a metric returns, and several metrics taken together.

A metric is a function `(predictions, labels, options) -> Scores` under a name in config/names.py. A plugin adds one:

    from llmforge.config.names import METRICS
    from llmforge.metrics.scores import Scores, mean

    def same_length(predictions, labels, options):
        rows = [{"same_length": len(p) == len(t)} for p, t in zip(predictions, labels)]
        return Scores({"same_length": mean(row["same_length"] for row in rows)}, rows)

    METRICS.add("same_length", same_length)

with `plugins: [my.py]` and `metrics: [same_length]` in the recipe. Shares lie in 0..1; only BLEU, chrF and ROUGE are
percentages, because LLaMA-Factory's are and the numbers are compared with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmforge.config.names import METRICS
from llmforge.config.schema import EvalConfig
from llmforge.errors import RecipeError


@dataclass(frozen=True)
class Table:
    """A table for people and for JSON: one name per column, one list of cells per row."""

    columns: list[str]
    rows: list[list[Any]]

    def as_dict(self) -> dict[str, Any]:
        """The form written to predict_results.json."""
        return {"columns": self.columns, "rows": self.rows}


@dataclass
class Scores:
    """Scores of many predictions.

    Attributes:
        values: name -> number over all rows; empty when there are no rows, since a mean of nothing is not 0.
        per_row: one mapping per prediction, in order; empty where a row could not be scored.
        tables: name -> table, such as the confusion matrix.
        notes: what a reader has to know about the values, such as BLEU's tokenizer or references left out.
    """

    values: dict[str, float] = field(default_factory=dict)
    per_row: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Metric = Callable[[Sequence[str], Sequence[str], EvalConfig], Scores]


def mean(numbers: Iterable[float]) -> float:
    """Arithmetic mean; of no numbers it is 0."""
    listed = list(numbers)
    return sum(listed) / len(listed) if listed else 0.0


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 when there is no whole."""
    return part / whole if whole else 0.0


def f1(precision: float, recall: float) -> float:
    """Harmonic mean of both, 0 when both are 0."""
    return ratio(2 * precision * recall, precision + recall)


def score(names: Sequence[str], predictions: Sequence[str], labels: Sequence[str], options: EvalConfig) -> Scores:
    """All the named metrics over the same rows, joined into one Scores.

    A row whose label is "" has no reference: it is not scored, and a note counts such rows.

    Raises:
        RecipeError: an unknown metric, a missing extra, a `label_field` that no reference has, or two metrics that
            give the same name to a value.
        ValueError: predictions and labels differ in number, or a metric returned another number of rows.
    """
    if len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} predictions but {len(labels)} labels")
    joined = Scores(per_row=[{} for _ in predictions])
    scored = [row for row, label in enumerate(labels) if label]
    if len(scored) < len(labels):
        left_out = len(labels) - len(scored)
        joined.notes.append(f"{left_out} of {len(labels)} rows have no reference reply and are not scored")
    predictions, labels = [predictions[row] for row in scored], [labels[row] for row in scored]
    for name in dict.fromkeys(names):
        scores = METRICS.get(name)(predictions, labels, options)
        if len(scores.per_row) != len(scored):
            raise ValueError(f"metric {name!r} scored {len(scores.per_row)} of {len(scored)} rows")
        if twice := sorted(joined.values.keys() & scores.values.keys()):
            raise RecipeError(f"metrics: {name!r} and an earlier one both report {', '.join(twice)}")
        joined.values.update(scores.values)
        joined.tables.update(scores.tables)
        joined.notes.extend(scores.notes)
        for row, more in zip(scored, scores.per_row, strict=True):
            joined.per_row[row].update(more)
    return joined


def check_metrics(names: Sequence[str], options: EvalConfig, labels: Sequence[str] = ()) -> None:
    """Find unknown metrics, missing extras and unusable labels before hours of generation, by scoring empty replies.

    Raises:
        RecipeError: as `score`.
    """
    score(names, [""] * len(labels), labels, options)
