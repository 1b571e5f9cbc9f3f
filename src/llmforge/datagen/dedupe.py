"""Copies among rows of files: exact ones on normalised text, near ones by MinHash, each confirmed by rapidfuzz.

MinHash over character 3-grams only proposes pairs; a pair counts when rapidfuzz's ratio reaches the limit. A row is
left out when it copies a row that stays, so no chain of small differences swallows rows that differ much.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmforge.datagen.copies import CJK, normalised
from llmforge.errors import require

NUM_PERM = 128
SEED = 1
GRAM = 3
SPACE_AT_CJK = re.compile(rf"(?<=[{CJK}]) | (?=[{CJK}])")


class Copy(NamedTuple):
    """A row, the row it copies, and their rapidfuzz ratio (0..1; 1.0 is equal after normalising)."""

    row: int
    of: int
    similarity: float


def compared(text: str) -> str:
    """A text as copies are compared: normalised, without the blanks some people put around Chinese characters."""
    return SPACE_AT_CJK.sub("", normalised(text))


def find_copies(texts: Sequence[str], max_similarity: float) -> list[Copy]:
    """Rows that copy an earlier one, in the rows' order; the others are at least `max_similarity` apart from each other
    as far as MinHash proposed them.

    10,000 Chinese rows of 80 characters: 2.7 s on one core (tests/datagen/test_dedupe_near.py).

    Args:
        texts: what is compared, one text a row.
        max_similarity: rapidfuzz ratio (0..1) from which a row is a copy; 1 finds exact copies only.
    """
    index = CopyIndex(max_similarity)
    found = []
    for row, text in enumerate(texts):
        if hit := index.find(text):
            found.append(Copy(row, *hit))
        else:
            index.add(row, text)
    return found


def find_copies_of(texts: Sequence[str], others: Iterable[str], max_similarity: float) -> list[Copy]:
    """Rows that copy one of `others`; `of` counts in `others`."""
    index = CopyIndex(max_similarity)
    for number, other in enumerate(others):
        index.add(number, other)
    return [Copy(row, *hit) for row, text in enumerate(texts) if (hit := index.find(text))]


@dataclass
class CopyIndex:
    """Texts that stay, by number; `find` names the most similar one that reaches the limit."""

    max_similarity: float

    def __post_init__(self) -> None:
        self.exact: dict[str, int] = {}
        self.texts: dict[int, str] = {}
        self._lsh: Any = None
        if self.max_similarity < 1:
            datasketch = require("datasketch", "data", "finding near copies")
            self._rapidfuzz = require("rapidfuzz", "data", "confirming near copies")
            # Few hashes per band find pairs whose 3-grams overlap little: one edited character changes three of them.
            rows = 4 if self.max_similarity >= 0.88 else 3 if self.max_similarity >= 0.82 else 2
            self._lsh = datasketch.MinHashLSH(num_perm=NUM_PERM, params=(NUM_PERM // rows, rows))
            self._new = datasketch.MinHash(NUM_PERM, seed=SEED, hashfunc=_crc)

    def add(self, number: int, text: str) -> None:
        """Remember a text under a number that was not used yet."""
        plain = compared(text)
        self.exact.setdefault(plain, number)
        if self._lsh is not None:
            self.texts[number] = plain
            self._lsh.insert(number, self._hash(plain), check_duplication=False)

    def find(self, text: str) -> tuple[int, float] | None:
        """(number, similarity) of the closest remembered text, or None when none reaches the limit."""
        plain = compared(text)
        if (number := self.exact.get(plain)) is not None:
            return number, 1.0
        if self._lsh is None:
            return None
        near = sorted(self._lsh.query(self._hash(plain)))
        found = self._rapidfuzz.process.extractOne(
            plain,
            [self.texts[number] for number in near],
            scorer=self._rapidfuzz.fuzz.ratio,
            score_cutoff=self.max_similarity * 100,
        )
        return (near[found[2]], found[1] / 100) if found else None

    def _hash(self, plain: str) -> Any:
        sketch = self._new.copy()
        sketch.update_batch([gram.encode(errors="surrogatepass") for gram in sorted(grams(plain))])
        return sketch


def grams(text: str) -> set[str]:
    """The character 3-grams of a text; a shorter text is its own."""
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def _crc(data: bytes) -> int:
    return zlib.crc32(data)
