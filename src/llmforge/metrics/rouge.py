"""ROUGE-1, ROUGE-2 and ROUGE-L, equal to LLaMA-Factory's numbers.

LLaMA-Factory cuts with jieba, joins the words with spaces and calls rouge_chinese 1.0.3. What that package does, and
this module therefore too:
- n-grams are sets: a repeated word counts once. ROUGE-L runs over all words, repeats included.
- F = 2PR / (P + R + 1e-8).
- The text is cut into lines behind a sentence end that no closing quote follows, also in the middle of a word that
  holds such a mark; a line of nothing but spaces counts as one empty word.
- An empty prediction or label scores 0. Each row is rounded to 4 digits before the mean is taken.
Its test compares with the package over 1,000 pairs.

Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries"; the package rouge-chinese 1.0.3;
github.com/hiyouga/LLaMA-Factory, src/llamafactory/train/sft/metric.py, ComputeSimilarity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmforge.config.schema import EvalConfig
from llmforge.metrics.scores import Scores, mean
from llmforge.metrics.words import load_segmenter, segment

# Where rouge_chinese starts a new line: behind an end mark, six dots, a doubled ellipsis, or a mark with its closing
# quote. Applied one after the other, as there.
SENTENCE_ENDS = [
    (re.compile("([。！？?])([^”’])"), r"\1\n\2"),
    (re.compile(r"(\.{6})([^”’])"), r"\1\n\2"),
    (re.compile("(…{2})([^”’])"), r"\1\n\2"),
    (re.compile("([。！？?][”’])([^，。！？?])"), r"\1\n\2"),
]


def rouge(predictions: Sequence[str], labels: Sequence[str], options: EvalConfig) -> Scores:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L in percent, the mean over rows.

    Values: `rouge-1`, `rouge-2`, `rouge-l` over jieba words, and `rouge-l_chars` over characters without spaces, which
    does not depend on how a dictionary cuts.

    Raises:
        RecipeError: jieba is not installed.
    """
    load_segmenter()
    rows = []
    for prediction, label in zip(predictions, labels, strict=True):
        ours, theirs = split_words(segment(prediction)), split_words(segment(label))
        row = {
            "rouge-1": rouge_n(ours, theirs, 1),
            "rouge-2": rouge_n(ours, theirs, 2),
            "rouge-l": rouge_l(ours, theirs),
            "rouge-l_chars": rouge_l(list("".join(prediction.split())), list("".join(label.split()))),
        }
        rows.append({name: round(share * 100, 4) for name, share in row.items()})
    return Scores({name: mean(row[name] for row in rows) for name in (rows[0] if rows else ())}, list(rows))


def split_words(pieces: Sequence[str]) -> list[str]:
    """The words rouge_chinese counts in segmented text; none when the text is empty or all spaces."""
    text = " ".join(pieces)
    if not text.split():
        return []
    for mark, with_line_end in SENTENCE_ENDS:
        text = mark.sub(with_line_end, text)
    return [word for line in text.rstrip().split("\n") if line for word in (line.split() or [""])]


def rouge_n(prediction: Sequence[str], label: Sequence[str], n: int) -> float:
    """F over the sets of n-grams, 0..1."""
    ours, theirs = _ngrams(prediction, n), _ngrams(label, n)
    return _f(len(ours & theirs), len(ours), len(theirs))


def rouge_l(prediction: Sequence[str], label: Sequence[str]) -> float:
    """F over the longest common subsequence, 0..1."""
    return _f(common_length(prediction, label), len(prediction), len(label))


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One row of the usual table is one integer with a bit per word of `first`, so a step costs one addition: 2,000 by
    2,000 words take 2 ms instead of 2 s. Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(first)) - 1
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(first) - row.bit_count()


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _f(common: int, ours: int, theirs: int) -> float:
    precision, recall = common / ours if ours else 0.0, common / theirs if theirs else 0.0
    return 2 * (precision * recall / (precision + recall + 1e-8))
