"""Exact match: the prediction is the label."""

from __future__ import annotations

from collections.abc import Sequence

from llmforge.config.schema import EvalConfig
from llmforge.metrics.json_text import parse_json
from llmforge.metrics.scores import Scores, mean


def exact_match(predictions: Sequence[str], labels: Sequence[str], options: EvalConfig) -> Scores:
    """Share of predictions equal to their label, without regard to space around either.

    Values: `exact_match` takes two JSON objects or arrays as equal when they mean the same, whatever their key order
    and spacing; `exact_match_raw` compares characters.
    """
    rows = [
        {"exact_match": same_answer(prediction, label), "exact_match_raw": prediction.strip() == label.strip()}
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    names = ("exact_match", "exact_match_raw") if rows else ()
    return Scores({name: mean(row[name] for row in rows) for name in names}, list(rows))


def same_answer(prediction: str, label: str) -> bool:
    """Whether both are the same JSON object or array, or else the same characters."""
    if prediction.strip() == label.strip():
        return True
    ours, theirs = parse_json(prediction), parse_json(label)
    return ours is not None and theirs is not None and ours.canonical == theirs.canonical
