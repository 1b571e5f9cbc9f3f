"""BLEU: of each sentence as LLaMA-Factory has it, and of the whole corpus by sacrebleu."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from llmforge.config.schema import EvalConfig
from llmforge.errors import require
from llmforge.metrics.scores import Scores, mean
from llmforge.metrics.words import is_chinese


def bleu4(predictions: Sequence[str], labels: Sequence[str], options: EvalConfig) -> Scores:
    """BLEU in percent.

    Values: `bleu-4`, the mean over rows of BLEU-4 over characters, each row rounded to 4 digits, as in LLaMA-Factory;
    `bleu_corpus` and `chrf` of sacrebleu over all rows, with its Chinese tokenizer when a label holds Chinese.

    Raises:
        RecipeError: sacrebleu is not installed.
    """
    sacrebleu = require("sacrebleu", "eval", "the metric bleu")
    rows = [
        {"bleu-4": round(sentence_bleu(prediction, label) * 100, 4)}
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    if not rows:
        return Scores()
    corpus = sacrebleu.BLEU(tokenize="zh" if any(map(is_chinese, labels)) else "13a")
    chrf = sacrebleu.CHRF()
    values = {
        "bleu-4": mean(row["bleu-4"] for row in rows),
        "bleu_corpus": corpus.corpus_score(list(predictions), [list(labels)]).score,
        "chrf": chrf.corpus_score(list(predictions), [list(labels)]).score,
    }
    notes = [f"bleu_corpus: sacrebleu {corpus.get_signature()}", f"chrf: sacrebleu {chrf.get_signature()}"]
    return Scores(values, list(rows), notes=notes)


def sentence_bleu(prediction: Sequence[str], label: Sequence[str]) -> float:
    """BLEU-4 of one sequence against one reference, 0..1, with NIST's smoothing: the k-th empty order counts 1 / 2^k.

    Without a common 1-gram it is 0. The same as nltk 3.10's `sentence_bleu([label], prediction,
    smoothing_function=SmoothingFunction().method3)`.

    Source: Papineni et al. 2002, aclanthology.org/P02-1040; smoothing 3 of Chen and Cherry 2014,
    aclanthology.org/W14-3346.
    """
    logs = []
    empty_orders = 0
    for n in range(1, 5):
        ours, theirs = _ngrams(prediction, n), _ngrams(label, n)
        common: float = (ours & theirs).total()
        if not common:
            if n == 1:
                return 0.0
            empty_orders += 1
            common = 1 / 2**empty_orders
        logs.append(math.log(common / max(1, ours.total())))
    brevity = min(1.0, math.exp(1 - len(label) / len(prediction)))
    return brevity * math.exp(math.fsum(logs) / 4)


def _ngrams(items: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))
