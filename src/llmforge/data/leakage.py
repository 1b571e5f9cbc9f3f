"""Test rows that training has seen: the same row, the same question, or a run of 13 words in common.

Source: 13-grams as in GPT-3, Brown et al. 2020, arXiv:2005.14165, appendix C, which also passes over runs that many
training rows share: they are instructions and formulas, not answers. A test row that is nothing but such a run is still
found as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmforge.data.example import Example, RowRef
from llmforge.data.plain_text import answer, normalised, question, words

SIZE = 13  # words of a run
COMMON = 10  # training rows from which on a run is a formula


@dataclass(frozen=True)
class Leak:
    """A test row and the first training row that shares something with it.

    `kind` is "row" (question and answer), "question", or "13-gram"; `share` is the part of its runs that are in the
    training data, 1 for whole rows and questions.
    """

    row: RowRef
    kind: str
    seen: RowRef
    share: float = 1.0


@dataclass
class _Test:
    source: RowRef
    runs: set[str]
    kind: str = ""
    seen: RowRef | None = None
    shared: dict[str, RowRef] = field(default_factory=dict)


def find_leaks(train: Iterable[Example], tests: Sequence[Example]) -> list[Leak]:
    """Test rows that are also in the training data, in their order; training rows are streamed."""
    known = [_Test(example.source, runs(_text(example))) for example in tests]
    rows: dict[str, list[_Test]] = {}
    questions: dict[str, list[_Test]] = {}
    by_run: dict[str, list[_Test]] = {}
    for test, example in zip(known, tests, strict=True):
        rows.setdefault(_row(example), []).append(test)
        if asked := normalised(question(example)):
            questions.setdefault(asked, []).append(test)
        for run in test.runs:
            by_run.setdefault(run, []).append(test)
    times: Counter[str] = Counter()
    for example in train:
        for test in rows.get(_row(example), ()):
            if test.kind != "row":
                test.kind, test.seen = "row", example.source
        for test in questions.get(normalised(question(example)), ()):
            if not test.kind:
                test.kind, test.seen = "question", example.source
        if by_run:
            for run in runs(_text(example)) & by_run.keys():
                times[run] += 1
                for test in by_run[run]:
                    test.shared.setdefault(run, example.source)
    return [leak for test in known if (leak := _leak(test, times))]


def _leak(test: _Test, times: Counter[str]) -> Leak | None:
    if test.seen:
        return Leak(test.source, test.kind, test.seen)
    telling = {run: seen for run, seen in test.shared.items() if times[run] <= COMMON}
    if not telling:
        return None
    return Leak(test.source, f"{SIZE}-gram", next(iter(telling.values())), len(telling) / len(test.runs))


def runs(text: str) -> set[str]:
    """All runs of SIZE words; none for a shorter text."""
    found = words(text)
    return {" ".join(found[i : i + SIZE]) for i in range(len(found) - SIZE + 1)}


def _text(example: Example) -> str:
    return f"{question(example)}\n{answer(example)}"


def _row(example: Example) -> str:
    return f"{normalised(question(example))}\n{normalised(answer(example))}"
