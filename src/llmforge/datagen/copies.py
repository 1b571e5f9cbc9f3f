"""Copies among accepted rows: equal after normalising, or too alike by ROUGE-L."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmforge.datagen.keys import DedupeConfig
from llmforge.errors import RecipeError, nearest, require

FIELDS = ("instruction", "input", "output")
CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
PUNCTUATION = re.compile(r"[^\w\s]|_")
WORDS = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


def normalised(text: str) -> str:
    """A text as it is compared: NFKC (full width becomes half), lower case, no punctuation, single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(PUNCTUATION.sub(" ", plain).split())


def units(text: str, zh: str = "chars") -> list[str]:
    """What ROUGE-L counts: words, and in Chinese characters or (with jieba) words."""
    if zh == "words":
        return [word for word in require("jieba", "data", "dedupe.zh: words").cut(normalised(text)) if word.strip()]
    return WORDS.findall(normalised(text))


def rouge_l(a: Sequence[str], b: Sequence[str], at_least: float = 0.0) -> float:
    """F1 of the longest common subsequence; 0.0 where it stays under `at_least`.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, section 3, with beta = 1.
    """
    if not a or not b:
        return float(not a and not b)
    LCSseq = require("rapidfuzz", "data", "comparing rows by ROUGE-L").distance.LCSseq
    needed = at_least * (len(a) + len(b)) / 2
    if min(len(a), len(b)) < needed:
        return 0.0
    common = LCSseq.similarity(a, b)
    score = 2 * common / (len(a) + len(b))
    return score if score >= at_least else 0.0


@dataclass
class Duplicates:
    """Accepted rows so far; `find` names one that a new row copies."""

    config: DedupeConfig
    _exact: dict[str, str] = field(default_factory=dict)
    _units: list[tuple[str, list[str]]] = field(default_factory=list)

    @classmethod
    def of(cls, config: DedupeConfig) -> Duplicates | None:
        """The comparison of a recipe, or None when it asks for none.

        Raises:
            RecipeError: a field that rows do not have.
        """
        if not config.field:
            return None
        for name in config.field.split("+"):
            if name.strip().split(".")[0] not in (*FIELDS, "out", "slots"):
                raise RecipeError(f"dedupe.field: {name.strip()!r} is no field of a row.{nearest(name, FIELDS)}")
        if config.method == "rouge_l":
            require("rapidfuzz", "data", "dedupe.method: rouge_l")
        return cls(config)

    def text_of(self, record: Mapping[str, Any]) -> str:
        """The compared fields of a row, joined."""
        return "\n".join(_text(record, name.strip()) for name in self.config.field.split("+"))

    def find(self, record: Mapping[str, Any]) -> str | None:
        """The id of an accepted row that this one copies."""
        text = self.text_of(record)
        if copy_of := self._exact.get(normalised(text)):
            return copy_of
        if self.config.method == "exact":
            return None
        mine = units(text, self.config.zh)
        return next(
            (id for id, theirs in self._units if rouge_l(mine, theirs, self.config.max) > self.config.max), None
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Remember an accepted row."""
        text = self.text_of(record)
        self._exact.setdefault(normalised(text), record["id"])
        if self.config.method == "rouge_l":
            self._units.append((record["id"], units(text, self.config.zh)))


def _text(record: Mapping[str, Any], name: str) -> str:
    value: Any = record
    for part in name.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
