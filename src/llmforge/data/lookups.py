"""Rows whose answer cannot be inferred from their question: names, numbers and codes that stand nowhere in it.

A model that is trained on such rows learns to make things up; they are for a lookup table, a search or a tool. The
signs, for short answers only: most words of the answer are neither in the question nor in the answers of several other
rows (as labels and formulas are), and it is not a number that could have been computed from numbers in the question.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from llmforge.data.example import Example
from llmforge.data.plain_text import DIVIDED, answer, words

LONGEST = 24  # words of an answer that is judged; a longer one explains, and its words say little about facts
REPEATED = 3  # rows with a word in their answers from which on it belongs to the task
NEW = 0.5  # part of an answer's words that must be new


def lookups(examples: Sequence[Example]) -> list[tuple[int, str]]:
    """(position, answer) of each such row."""
    answers = [_pieces(answer(example)) if example.text is None else [] for example in examples]
    used = Counter(word for found in answers for word in set(found))
    flagged = []
    for position, (example, found) in enumerate(zip(examples, answers, strict=True)):
        if not found or len(found) > LONGEST or example.tools:
            continue
        given = "\n".join(m.content for m in example.messages if m is not example.messages[-1])
        known = set(_pieces(given))
        new = [word for word in found if word not in known and used[word] < REPEATED]
        if len(new) < NEW * len(found) or (_is_number(new) and _holds_numbers(known)):
            continue
        flagged.append((position, answer(example).strip()))
    return flagged


def _pieces(text: str) -> list[str]:
    """Words; of a script without spaces pairs of neighbours, since single characters are in everything."""
    pieces: list[str] = []
    for word, following in itertools.pairwise([*words(text), ""]):
        if not DIVIDED.match(word):
            pieces.append(word)
        elif DIVIDED.match(following):
            pieces.append(word + following)
        elif not (pieces and DIVIDED.match(pieces[-1]) and pieces[-1].endswith(word)):
            pieces.append(word)
    return pieces


def _is_number(found: list[str]) -> bool:
    return all(word.isdigit() for word in found)


def _holds_numbers(known: set[str]) -> bool:
    """Whether the question holds numbers to compute with."""
    return sum(word.isdigit() for word in known) >= 2
