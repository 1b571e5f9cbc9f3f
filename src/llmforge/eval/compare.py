"""Two files of predictions over the same rows: what got better or worse, and whether that is more than chance."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmforge.errors import RecipeError
from llmforge.eval.predictions import Prediction, read_predictions
from llmforge.metrics.exact import same_answer

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles of the resampled differences: 95 %
SEED = 20240501
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run
Change = Literal["better", "worse", "same", "unscored"]


@dataclass(frozen=True)
class Pair:
    """One row, answered twice."""

    row: int
    before: Prediction
    after: Prediction

    @property
    def prompt(self) -> str:
        return self.after.prompt or self.before.prompt

    @property
    def label(self) -> str:
        return self.after.label

    def change(self, metric: str) -> Change:
        """How the row's value of a metric moved; of all our metrics more is better."""
        before, after = values_of(self.before).get(metric), values_of(self.after).get(metric)
        if before is None or after is None:
            return "unscored"
        return "same" if before == after else "better" if after > before else "worse"


@dataclass(frozen=True)
class Difference:
    """A metric over the joined rows: means, and the 95 % interval of their difference by resampling rows."""

    metric: str
    rows: int
    before: float
    after: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0; without that nothing is better or worse."""
        return self.low > 0 or self.high < 0


@dataclass
class Comparison:
    """Two files joined by row; `notes` say what could not be joined."""

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """Metrics that rows of both files have, in the order they appear."""
        names = {name: None for pair in self.pairs for name in values_of(pair.before)}
        both = {name for pair in self.pairs for name in values_of(pair.after)}
        return [name for name in names if name in both]

    def differences(self) -> list[Difference]:
        """All metrics, before and after."""
        return [found for name in self.metrics if (found := difference(name, self.pairs))]

    def counts(self, metric: str) -> dict[Change, int]:
        """Rows by how they moved."""
        counts: dict[Change, int] = {"better": 0, "worse": 0, "same": 0, "unscored": 0}
        for pair in self.pairs:
            counts[pair.change(metric)] += 1
        return counts

    def as_rows(self) -> Iterable[dict[str, Any]]:
        """One flat mapping per row, for export."""
        for pair in self.pairs:
            line: dict[str, Any] = {
                "row": pair.row,
                "prompt": pair.prompt,
                "label": pair.label,
                "before": pair.before.predict,
                "after": pair.after.predict,
            }
            for metric in self.metrics:
                line[f"{metric}_before"] = values_of(pair.before).get(metric)
                line[f"{metric}_after"] = values_of(pair.after).get(metric)
            yield line


def values_of(prediction: Prediction) -> dict[str, float]:
    """The row's numbers; `exact_match` also for files that hold no scores, as LLaMA-Factory's do."""
    values = {name: float(value) for name, value in prediction.scores.items() if isinstance(value, int | float)}
    if prediction.label and "exact_match" not in values:
        values["exact_match"] = float(same_answer(prediction.predict, prediction.label))
    return values


def compare(before: Path, after: Path) -> Comparison:
    """Join two files by row number; a row counts when both hold it and ask the same there.

    Raises:
        RecipeError: a file is missing or broken, or the two have no row in common.
    """
    first, second = (_by_row(path) for path in (before, after))
    pairs: list[Pair] = []
    others: list[Pair] = []
    for row in sorted(first.keys() & second.keys()):
        one, two = first[row], second[row]
        asked_same = not one.prompt or not two.prompt or _asked(one) == _asked(two)
        (pairs if asked_same and one.label == two.label else others).append(Pair(row, one, two))
    if not pairs:
        why = f"row {others[0].row} asks something else in each" if others else "they hold no row with the same number"
        raise RecipeError(f"{before} and {after} cannot be compared: {why}. Predict both with the same test set")
    notes = [f"{len(others)} rows ask something else in each file and are left out"] if others else []
    for path, mine, other in ((before, first, second), (after, second, first)):
        if lonely := len(mine.keys() - other.keys()):
            notes.append(f"{lonely} rows are only in {path}")
    return Comparison(pairs, notes)


def difference(metric: str, pairs: Sequence[Pair]) -> Difference | None:
    """Means of a metric over the rows that have it in both files; None where none has.

    The interval is a percentile bootstrap over rows (Efron 1979), pairs kept together, with a fixed seed.
    """
    both = [(values_of(pair.before).get(metric), values_of(pair.after).get(metric)) for pair in pairs]
    values = np.array([(one, two) for one, two in both if one is not None and two is not None], dtype=float)
    if not len(values):
        return None
    gaps = values[:, 1] - values[:, 0]
    random = np.random.default_rng(SEED)
    means = np.array([gaps[random.integers(0, len(gaps), len(gaps))].mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, INTERVAL)
    return Difference(metric, len(values), float(values[:, 0].mean()), float(values[:, 1].mean()), low, high)


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table for a spreadsheet; a cell that one would run as a formula gets an apostrophe before it."""
    listed = list(rows)
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, list(listed[0]) if listed else [], lineterminator="\r\n")
    writer.writeheader()
    for row in listed:
        writer.writerow({key: _guarded(value) for key, value in row.items()})
    return "\ufeff" + sheet.getvalue()


def as_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _asked(prediction: Prediction) -> str:
    return " ".join(prediction.prompt.split())


def _by_row(path: Path) -> dict[int, Prediction]:
    found: dict[int, Prediction] = {}
    for prediction in read_predictions(path):
        if prediction.row in found:
            raise RecipeError(f"{path}: row {prediction.row} stands twice")
        found[prediction.row] = prediction
    return found
