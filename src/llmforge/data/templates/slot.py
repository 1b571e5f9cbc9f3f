"""Slots: a template's text with named gaps, and the parts that a conversation is written in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

GAP = re.compile(r"\{(content|bos|eos|round)\}")  # other braces are text, so JSON may stand in a slot


class Part(NamedTuple):
    """A piece of a row.

    `mark`: the template's own words, in which control tokens count; otherwise somebody's text, in which they do not.
    `learn`: the model is to write it. `ends`: what follows (or an eos added at the row's end) has eos as its label.
    """

    text: str
    mark: bool
    learn: bool = False
    ends: bool = False


def fill(slot: str, values: Mapping[str, str], content: Iterable[Part] = (), learn: bool = False) -> list[Part]:
    """The parts of a slot; `content` goes where the slot says {content}, or behind it where it does not say so."""
    parts: list[Part] = []
    pieces = GAP.split(slot)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            parts.append(Part(piece, True, learn))
        elif piece == "content":
            parts.extend(content)
        else:
            parts.append(Part(values[piece], True, learn))
    if "content" not in pieces[1::2]:
        parts.extend(content)
    return [part for part in parts if part.text]
