"""What a person sees before the first step: the first row with its trained tokens marked, and what will be trained."""

from __future__ import annotations

from itertools import groupby

from torch import nn

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.tokenizer import Tokenizer
from llmforge.model.adapters import count_parameters

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"
SHOWN = 400  # tokens of a long row that are shown at each end


def show_labels(tokenizer: Tokenizer, row: Encoded, colour: bool) -> str:
    """The row's text, trained tokens green on a terminal, between ⟦ and ⟧ elsewhere.

    A label that differs from the token at its place (Baichuan2's own style) is written behind it: token→label.
    """
    ids, labels = row.input_ids, row.labels
    marked = [(i, label, _kind(i, label)) for i, label in zip(ids, labels, strict=True)]
    if len(marked) <= 2 * SHOWN:
        return _spans(tokenizer, marked, colour)
    left_out = f" … {len(marked) - 2 * SHOWN} tokens … "
    return _spans(tokenizer, marked[:SHOWN], colour) + left_out + _spans(tokenizer, marked[-SHOWN:], colour)


def _kind(token: int, label: int) -> str:
    return "prompt" if label == IGNORE else "trained" if label == token else "other"


def _spans(tokenizer: Tokenizer, marked: list[tuple[int, int, str]], colour: bool) -> str:
    parts = []
    for kind, group in groupby(marked, key=lambda item: item[2]):
        tokens = list(group)
        text = tokenizer.decode([i for i, _, _ in tokens])
        if kind == "other":
            text += "→" + tokenizer.decode([label for _, label, _ in tokens])
        if kind == "prompt":
            parts.append(f"{GREY}{text}{RESET}" if colour else text)
        else:
            parts.append(f"{GREEN}{text}{RESET}" if colour else f"{OPEN}{text}{CLOSE}")
    return "".join(parts)


def trainable_line(model: nn.Module) -> str:
    """ "trainable: 1,949,696 of 6,245,533,696 parameters (0.03 %)"."""
    trainable, total = count_parameters(model)
    return f"trainable: {trainable:,} of {total:,} parameters ({100 * trainable / max(total, 1):.2f} %)"
