"""A row as people read it, its trained tokens marked."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from llmforge.data.example import Encoded
from llmforge.data.groups import is_group, open_group
from llmforge.data.tokenizer import Tokenizer

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"
SHOWN = 400  # tokens of a long row that are shown at each end


class Span(NamedTuple):
    """A run of tokens: its text, whether it is trained, and what is learned there when that is another text."""

    text: str
    trained: bool
    label: str | None = None


def spans(tokenizer: Tokenizer, row: Encoded) -> list[Span]:
    """The row cut where training starts and ends."""
    found = []
    marked = ((i, label, _kind(i, label)) for i, label in zip(row.input_ids, row.labels, strict=True))
    for kind, group in groupby(marked, key=lambda item: item[2]):
        tokens = list(group)
        text = tokenizer.decode([i for i, _, _ in tokens])
        other = tokenizer.decode([label for _, label, _ in tokens]) if kind == "other" else None
        found.append(Span(text, kind != "prompt", other))
    return found


def show_labels(tokenizer: Tokenizer, row: Encoded, colour: bool) -> str:
    """The row's text, trained tokens green on a terminal, between ⟦ and ⟧ elsewhere.

    A label that differs from the token at its place (Baichuan2's own style) is written behind it: token→label. The
    members of a group stand below each other.
    """
    if is_group(row):
        members, marks = open_group(row)
        shown = (show_labels(tokenizer, member, colour) for member in members)
        return "\n".join(f"[{mark}] {text}" for mark, text in zip(marks, shown, strict=True))
    if len(row.input_ids) <= 2 * SHOWN:
        return _written(spans(tokenizer, row), colour)
    start, end = (Encoded(row.input_ids[part], row.labels[part]) for part in (slice(SHOWN), slice(-SHOWN, None)))
    left_out = f" … {len(row.input_ids) - 2 * SHOWN} tokens … "
    return _written(spans(tokenizer, start), colour) + left_out + _written(spans(tokenizer, end), colour)


def _kind(token: int, label: int) -> str:
    return "prompt" if label < 0 else "trained" if label == token else "other"


def _written(found: list[Span], colour: bool) -> str:
    parts = []
    for text, trained, label in found:
        text = text if label is None else f"{text}→{label}"
        if trained:
            parts.append(f"{GREEN}{text}{RESET}" if colour else f"{OPEN}{text}{CLOSE}")
        else:
            parts.append(f"{GREY}{text}{RESET}" if colour else text)
    return "".join(parts)
