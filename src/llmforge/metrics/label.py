"""Classification: the answer, or one field of a JSON answer, is a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmforge.config.schema import EvalConfig
from llmforge.errors import RecipeError, nearest
from llmforge.metrics.json_text import MISSING, canonical_json, field_at, parse_json
from llmforge.metrics.scores import Scores, Table, f1, mean, ratio

NO_LABEL = "(no label)"  # the answer is not JSON or lacks the field
OTHER = "(other)"  # an answer that is no label of the references
MOST_LABELS = 200  # of a confusion matrix; free text taken for labels would make one of millions of cells


def label_scores(predictions: Sequence[str], labels: Sequence[str], options: EvalConfig) -> Scores:
    """Accuracy over labels, the share of valid ones, and who is taken for whom.

    A label is the whole answer, or its field `options.label_field` (`a.b` for a field inside another). A valid label
    is one that occurs in the references. Values: `label_accuracy`, `label_valid`, `label_macro_f1` (mean F1 over the
    labels of the references). Tables: `labels`, with counts and F1 of each, and `confusion`, references down and
    predictions across.

    Raises:
        RecipeError: no reference has the field.
    """
    expected = [read_label(text, options.label_field) for text in labels]
    given = [read_label(text, options.label_field) for text in predictions]
    pairs = [(e, NO_LABEL if g is None else g) for e, g in zip(expected, given, strict=True) if e is not None]
    if labels and not pairs:
        raise RecipeError(_no_field(labels, options.label_field))
    if not labels:
        return Scores()

    counts = Counter(e for e, _ in pairs)
    known = sorted(counts)
    predicted, right = Counter(g for _, g in pairs), Counter(e for e, g in pairs if e == g)
    by_label: list[list[Any]] = []
    for name in known:
        precision, recall = ratio(right[name], predicted[name]), ratio(right[name], counts[name])
        by_label.append([name, counts[name], predicted[name], right[name], precision, recall, f1(precision, recall)])
    scores = Scores(
        values={
            "label_accuracy": mean(e == g for e, g in pairs),
            "label_valid": mean(g in counts for _, g in pairs),
            "label_macro_f1": mean(row[-1] for row in by_label),
        },
        per_row=[
            {} if e is None else {"label": e, "predicted_label": g, "label_right": e == g}
            for e, g in zip(expected, given, strict=True)
        ],
        tables={"labels": Table(["label", "rows", "predicted", "right", "precision", "recall", "f1"], by_label)},
    )
    if len(known) > MOST_LABELS:
        scores.notes.append(f"label: no confusion matrix for {len(known)} labels, more than {MOST_LABELS}")
    else:
        scores.tables["confusion"] = _confusion(pairs, known)
    if left_out := len(labels) - len(pairs):
        scores.notes.append(f"label: {left_out} of {len(labels)} references have no label and are not counted")
    return scores


def read_label(text: str, label_field: str | None) -> str | None:
    """The label in an answer; None when it has to be a field and the answer has none.

    A field that is no string (3, true, a list) is named by its JSON text.
    """
    answer = parse_json(text)
    if label_field is None:
        return text.strip() if answer is None else answer.canonical
    value = MISSING if answer is None else field_at(answer.value, label_field)
    if value is MISSING:
        return None
    return value.strip() if isinstance(value, str) else canonical_json(value)


def _confusion(pairs: list[tuple[str, str]], known: list[str]) -> Table:
    """References down, predictions across; the two last columns hold what is no label of the references."""
    across = [*known, *(name for name in (OTHER, NO_LABEL) if name not in known)]
    cells = Counter((e, g if g in across else OTHER) for e, g in pairs)
    return Table(["label", *across], [[e, *(cells[e, g] for g in across)] for e in known])


def _no_field(labels: Sequence[str], label_field: str | None) -> str:
    answers = [answer for text in labels if (answer := parse_json(text))]
    if not answers:
        return (
            f"label_field: got {label_field!r}, but no reference is a JSON object; the first one is {labels[0][:80]!r}"
        )
    fields = sorted({name for answer in answers if isinstance(answer.value, dict) for name in answer.value})
    known = f" Fields there: {', '.join(fields)}" if fields else ""
    return f"label_field: no reference has a field {label_field!r}.{nearest(label_field, fields)}{known}"
