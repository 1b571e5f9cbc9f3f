"""Test rows that training rows give away: a long sequence of words in common, or a near copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmforge.datagen.copies import units
from llmforge.datagen.dedupe import find_copies_of


@dataclass(frozen=True)
class Leak:
    """A test row, the training row that gives it away, and how: "13 words in a row" or "near copy"."""

    test: int
    train: int
    how: str
    share: float  # of the test row's sequences found in training, or the rapidfuzz ratio; 0..1
    example: str  # the first shared sequence


def find_leaks(
    train: Sequence[str], test: Sequence[str], *, ngram: int = 13, common: int = 10, max_similarity: float = 0.9
) -> list[Leak]:
    """Contaminated test rows, each once, in their order.

    A test row counts when it shares `ngram` words (Chinese: characters) in a row with a training row, or when it is a
    near copy of one. Sequences found in more than `common` training rows are instructions and headings that every
    row repeats, and tell nothing. A row shorter than `ngram` counts only as a copy.

    Source: Brown et al. 2020, arXiv:2005.14165, appendix C: 13-grams, those in more than 10 documents left aside.
    """
    wanted: dict[tuple[str, ...], int] = {}
    of_test = []
    for text in test:
        sequences = _sequences(text, ngram)
        of_test.append(sequences)
        for sequence in sequences:
            wanted.setdefault(sequence, -1)
    times: Counter[tuple[str, ...]] = Counter()
    for row, text in enumerate(train):
        for sequence in set(_sequences(text, ngram)) & wanted.keys():
            times[sequence] += 1
            if wanted[sequence] < 0:
                wanted[sequence] = row
    copies = {copy.row: copy for copy in find_copies_of(test, train, max_similarity)}
    leaks = []
    for number, sequences in enumerate(of_test):
        if copy := copies.get(number):
            leaks.append(Leak(number, copy.of, "near copy", copy.similarity, test[number][:80]))
            continue
        shared = [sequence for sequence in sequences if 0 < times[sequence] <= common]
        if shared:
            share = len(set(shared)) / len(set(sequences))
            leaks.append(Leak(number, wanted[shared[0]], f"{ngram} words in a row", share, _joined(shared[0])))
    return leaks


def _sequences(text: str, length: int) -> list[tuple[str, ...]]:
    words = units(text)
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def _joined(words: Sequence[str]) -> str:
    text = ""
    for word in words:
        text += " " + word if text and text[-1].isascii() and word[0].isascii() else word
    return text
