"""What one data set holds: every row read, duplicates, labels, lengths against cutoff_len, answers out of nowhere.

`forge-cli data check` and `data stats` print these findings, and the board shows them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmforge.data.encode import EncodeOptions, InMemory, RowEncoder, encode_stream
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import Example, RowReport
from llmforge.data.leakage import Leak
from llmforge.data.lookups import lookups
from llmforge.data.plain_text import answer, normalised, question
from llmforge.data.prepare import Reading
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
BINS = 20  # of the histogram of lengths
MOST_LABELS = 100  # different answers up to which they are taken for labels
ROWS_PER_LABEL = 3  # rows that a label has on average, at least
LISTED = 20  # groups of duplicates that are listed


@dataclass
class Findings:
    """One data set looked at. `refs` of rows are numbers of rows in its file."""

    name: str
    where: str
    stage: str
    report: RowReport
    examples: list[Example]
    duplicates: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    lookups: list[dict[str, Any]] = field(default_factory=list)
    lengths: dict[str, Any] | None = None
    leaks: list[Leak] = field(default_factory=list)
    shape: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        told = self.report.as_dict()
        return {
            "name": self.name,
            "rows_in": told["rows_in"],
            "rows_ok": told["rows_ok"],
            "rejected": told["rejected"],
            "fixed": told["fixed"],
            "where": self.where,
            "stage": self.stage,
            "reasons": self.report.reasons(),
            "notes": told["notes"],
            "duplicates": self.duplicates,
            "labels": self.labels,
            "lookups": self.lookups,
            "lengths": self.lengths,
            "leakage": [
                {
                    "row": leak.row.row,
                    "kind": leak.kind,
                    "seen": {"file": leak.seen.file, "row": leak.seen.row},
                    "share": round(leak.share, 3),
                }
                for leak in self.leaks
            ],
        }


def natural_stage(entry: DatasetEntry) -> str:
    """The stage that an entry's rows are for."""
    if entry.ranking:
        return "dpo"
    if entry.columns.kto_tag:
        return "kto"
    if entry.formatting == "alpaca" and entry.columns.response is None:
        return "prompt"  # rows that a policy answers by itself
    bare_text = entry.formatting == "alpaca" and entry.named == {"prompt"} and entry.columns.prompt == "text"
    return "pt" if bare_text or entry.formatting == "text" else "sft"


def inspect_set(reading: Reading) -> Findings:
    """Read a data set whole and look at its texts.

    Raises:
        RecipeError: the entry or its files cannot be read.
    """
    report = RowReport(f"read {reading.entry.name}")
    examples = list(reading.examples(report))
    found = Findings(reading.entry.name, reading.entry.where, reading.stage, report, examples)
    found.duplicates = find_duplicates(examples)
    found.labels = find_labels(examples)
    found.shape = shape(examples)
    if reading.stage == "sft":
        found.lookups = [{"row": examples[i].source.row, "answer": text[:80]} for i, text in lookups(examples)]
    return found


def find_duplicates(examples: Sequence[Example]) -> dict[str, Any]:
    """Rows that say the same but for case, width, punctuation and spaces, and questions with more than one answer.

    Returns:
        `rows`: rows that repeat an earlier one; `groups`: their row numbers, the largest group first; `conflicts`:
        questions that come with different answers; `conflict_groups`: the row numbers of these.
    """
    same: dict[str, list[int]] = {}
    asked: dict[str, dict[str, list[int]]] = {}
    for example in examples:
        told, reply = normalised(_asked(example)), normalised(answer(example))
        same.setdefault(f"{told}\n{reply}\n{_rejected(example)}", []).append(example.source.row)
        if told and example.chosen is None and example.label is None:
            asked.setdefault(told, {}).setdefault(reply, []).append(example.source.row)
    groups = sorted((rows for rows in same.values() if len(rows) > 1), key=len, reverse=True)
    conflicts = [
        sorted(row for rows in replies.values() for row in rows) for replies in asked.values() if len(replies) > 1
    ]
    return {
        "rows": sum(len(rows) - 1 for rows in groups),
        "groups": groups[:LISTED],
        "conflicts": len(conflicts),
        "conflict_groups": conflicts[:LISTED],
    }


def _asked(example: Example) -> str:
    """The question with system text and tools: the same words under another instruction ask something else."""
    system = [message.content for message in example.messages if message.role == "system"]
    return "\n".join([*system, question(example), repr(example.tools) if example.tools else ""])


def _rejected(example: Example) -> str:
    return f"{normalised(example.rejected.content)}" if example.rejected else f"{example.label}"


def find_labels(examples: Sequence[Example]) -> dict[str, int]:
    """Rows of each label, the most frequent first: of the whole answer, or of a field of answers that are JSON objects.

    {} where answers differ too much to be labels.
    """
    answers = [answer(example) for example in examples if example.text is None]
    objects = [value for text in answers if isinstance(value := _json(text), dict)]
    if answers and len(objects) == len(answers):
        for name in objects[0]:
            values = [value.get(name) for value in objects]
            if all(isinstance(value, str) for value in values) and (counts := _counts([str(v) for v in values])):
                return {f"{name}: {value}": count for value, count in counts.items()}
        return {}
    return _counts(answers)


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None


def _counts(values: list[str]) -> dict[str, int]:
    counts = Counter(values)
    few = 1 < len(counts) <= min(MOST_LABELS, len(values) / ROWS_PER_LABEL)
    return dict(counts.most_common()) if few else {}


def shape(examples: Sequence[Example]) -> dict[str, Any]:
    """Turns, characters, and how many rows bring a system text, tools, calls or reasoning."""
    turns = [sum(message.role == "user" for message in example.messages) for example in examples]
    characters = [len(e.text or "") + sum(len(m.content) for m in e.messages) for e in examples]
    replies = [len(answer(example)) for example in examples]
    return {
        "turns": dict(sorted(Counter(turns).items())),
        "characters": summary(np.array(characters)),
        "answer_characters": summary(np.array(replies)),
        "with_system": sum(any(m.role == "system" for m in e.messages) for e in examples),
        "with_tools": sum(bool(e.tools) for e in examples),
        "with_calls": sum(any(m.tool_calls for m in e.messages) for e in examples),
        "with_reasoning": sum(any(m.reasoning or "<think>" in m.content for m in e.messages) for e in examples),
    }


def measure(found: Findings, template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> dict[str, Any]:
    """Tokens of the rows before they are cut, and what `options` would do to them.

    Returns:
        summary of lengths with a histogram, learned share, `cutoff_len`, `longer` rows, and of these `cut` and
        `rejected` ones; `refused`: rows that do not fit the template; `cutoff_99`: tokens that hold 99 % of the rows.
    """
    endings = [replace(e, messages=(*e.messages, e.chosen)) if e.chosen else e for e in found.examples]
    whole = replace(options, cutoff_len=2**31 - 1, truncation="right", packing=False)
    sink = InMemory()
    refused = encode_stream(iter(endings), RowEncoder(template, tokenizer, whole), sink).rejected
    encoded = sink.finish()
    lengths = encoded.lengths
    told: dict[str, Any] = {**summary(lengths), "cutoff_len": options.cutoff_len, "truncation": options.truncation}
    told["refused"] = [{"row": endings[i].source.row, "reason": reason} for i, reason in refused]
    if not len(lengths):
        return told
    long = int((lengths > options.cutoff_len).sum())
    told |= {"longer": long, "cut": 0, "rejected": 0, "cutoff_99": int(np.percentile(lengths, 99, method="higher"))}
    told["learned_share"] = round(float(encoded.learned.sum() / lengths.sum()), 4)
    counts, edges = np.histogram(lengths, bins=min(BINS, int(lengths.max())))
    told["histogram"] = {"edges": [round(float(edge), 1) for edge in edges], "counts": counts.tolist()}
    if long and not options.joins:
        numbers = set(encoded.examples[lengths > options.cutoff_len].tolist())
        longer = [example for i, example in enumerate(endings) if i in numbers]
        drops = options.truncation == "raise"  # the run would end; here the rows are only counted
        forecast = replace(options, packing=False, truncation="drop" if drops else options.truncation)
        outcome = encode_stream(iter(longer), RowEncoder(template, tokenizer, forecast), InMemory())
        told |= {"cut": len(outcome.fixed), "rejected": len(outcome.rejected)}
    return told


def summary(values: np.ndarray) -> dict[str, Any]:
    """Number, total, mean, extremes and percentiles."""
    if not len(values):
        return {"rows": 0, "total": 0}
    ranks = np.percentile(values, PERCENTILES, method="higher")
    return {
        "rows": len(values),
        "total": int(values.sum()),
        "mean": round(float(values.mean()), 1),
        "min": int(values.min()),
        **{f"p{p}": int(value) for p, value in zip(PERCENTILES, ranks, strict=True)},
        "max": int(values.max()),
    }
