"""BLEU and ROUGE give LLaMA-Factory's numbers: golden pairs, and 1,000 random ones where its packages are installed."""

from __future__ import annotations

import logging
import random
import subprocess
import sys

import pytest

from llmforge.config.schema import EvalConfig
from llmforge.metrics.bleu import bleu4, sentence_bleu
from llmforge.metrics.rouge import common_length, rouge, rouge_l, rouge_n, split_words
from llmforge.metrics.words import is_chinese, segment

OPTIONS = EvalConfig()

# prediction, label, [rouge-1, rouge-2, rouge-l, bleu-4] from rouge_chinese 1.0.3, jieba 0.42.1 and nltk 3.10.4 with
# the lines of LLaMA-Factory's scripts/eval_bleu_rouge.py
GOLDEN = [
    ("今天天气很好", "今天天气很好", [100.0, 100.0, 100.0, 100.0]),
    ("今天天气不错，我们去公园。", "今天天气很好，我们去公园散步。", [75.0, 42.8571, 75.0, 50.7843]),
    ("东门发生火灾，请派两辆消防车。", "东门起火，需要两辆消防车支援。", [58.8235, 13.3333, 58.8235, 30.9346]),
    ("他说：“你好吗？”我说：“很好。”", "他问：“你好吗？”我答：“很好！”谢谢。", [76.9231, 50.0, 72.7273, 49.9454]),
    ("the cat sat on the mat", "the cat is on the mat", [80.0, 60.0, 83.3333, 78.392]),
    ("北京北京北京", "北京欢迎你", [50.0, 0.0, 33.3333, 16.2334]),
    ("好。\n \n 是的", "好。\n\n是的", [100.0, 100.0, 100.0, 27.0541]),
    ("", "没有回答", [0.0, 0.0, 0.0, 0.0]),
    ("回答", "", [0.0, 0.0, 0.0, 0.0]),
    ("   ", "空格", [0.0, 0.0, 0.0, 0.0]),
    ("苹果", "香蕉", [0.0, 0.0, 0.0, 0.0]),
    ('{"类型": "火灾"}', '{"类型": "洪水"}', [83.3333, 75.0, 88.8889, 67.0423]),
    ("等等.......再说", "等等......再说", [85.7143, 40.0, 85.7143, 89.3154]),
    ("😀开心", "开心😀", [100.0, 0.0, 50.0, 50.0]),
]


@pytest.mark.parametrize(("prediction", "label", "expected"), GOLDEN)
def test_each_row_has_the_numbers_of_llama_factory(prediction, label, expected):
    row = rouge([prediction], [label], OPTIONS).per_row[0] | bleu4([prediction], [label], OPTIONS).per_row[0]
    assert [row[name] for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4")] == expected


def test_values_are_means_over_rows():
    predictions, labels, expected = zip(*GOLDEN, strict=True)
    values = rouge(predictions, labels, OPTIONS).values | bleu4(predictions, labels, OPTIONS).values
    for i, name in enumerate(("rouge-1", "rouge-2", "rouge-l", "bleu-4")):
        assert values[name] == pytest.approx(sum(row[i] for row in expected) / len(expected))


def test_a_repeated_word_counts_once_in_rouge_1_and_each_time_in_rouge_l():
    assert rouge_n(["a", "a", "b"], ["a", "b"], 1) == pytest.approx(1, abs=1e-6)
    assert rouge_l(["a", "a", "b"], ["a", "b"]) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1), abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        ("", "abc", 0),
        ("abc", "", 0),
        ("abcbdab", "bdcaba", 4),
        ("aaa", "aa", 2),
        ("abc", "xyz", 0),
        ("你好吗", "你们好", 2),
    ],
)
def test_longest_common_subsequence(first, second, length):
    assert common_length(first, second) == length


def test_longest_common_subsequence_equals_the_table_of_the_textbook():
    rng = random.Random(0)
    for _ in range(200):
        first, second = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        above = [0] * (len(second) + 1)
        for a in first:
            row = [0]
            for j, b in enumerate(second):
                row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
            above = row
        assert common_length(first, second) == above[-1]


def test_a_line_of_spaces_counts_as_one_empty_word_as_in_rouge_chinese():
    assert split_words(segment("好。\n \n 是的")) == ["好", "。", "", "", "是", "的"]
    assert split_words(segment(" \n\t　")) == []


def test_sentence_bleu_of_one_word_uses_the_smoothed_orders():
    # 1-gram 1/1, then the three empty orders count 1/2, 1/4 and 1/8: (1 * 1/2 * 1/4 * 1/8) ** (1/4)
    assert sentence_bleu("a", "a") == pytest.approx((1 / 64) ** 0.25)


def test_sentence_bleu_punishes_a_short_answer():
    assert sentence_bleu("abcde", "abcdeabcde") == pytest.approx(2.718281828 ** (1 - 10 / 5))
    assert sentence_bleu("abcdeabcde", "abcdeabcde") == 1


def test_corpus_bleu_takes_the_tokenizer_of_the_labels_language_and_names_it():
    chinese = bleu4(["今天天气很好。"], ["今天天气很好。"], OPTIONS)
    english = bleu4(["The cat sat on the mat."], ["The cat sat on the mat."], OPTIONS)
    assert chinese.values["bleu_corpus"] == pytest.approx(100)
    assert "tok:zh" in chinese.notes[0]
    assert "tok:13a" in english.notes[0]
    assert english.values["chrf"] == pytest.approx(100)


def test_no_rows_and_only_empty_rows_are_safe():
    assert rouge([], [], OPTIONS).values == bleu4([], [], OPTIONS).values == {}
    scores = rouge(["", ""], ["", ""], OPTIONS).values | bleu4(["", ""], ["", ""], OPTIONS).values
    assert all(value in (0.0, 100.0) for value in scores.values())  # sacrebleu's chrF calls nothing against nothing 100


@pytest.mark.parametrize("text", ["汉", "㐀", "\U00020000", "ABC 中文"])
def test_chinese_is_found(text):
    assert is_chinese(text)


@pytest.mark.parametrize("text", ["", "plain text", "ひらがな", "한국어", "，。"])
def test_other_scripts_are_not_chinese(text):
    assert not is_chinese(text)


def test_jieba_says_nothing():
    code = "from llmforge.metrics.words import segment; print(segment('今天天气很好'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['今天天气', '很', '好']\n"
    assert done.stderr == ""


def test_a_missing_package_is_one_line(monkeypatch):
    from llmforge.errors import RecipeError

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(RecipeError, match=r"metric bleu needs .*pip install 'llmforge\[eval\]'"):
        bleu4([], [], OPTIONS)


def random_pairs(count: int) -> list[tuple[str, str]]:
    rng = random.Random(5)
    pieces = [
        *"的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定"
    ]
    pieces += [
        "。",
        "！",
        "？",
        "，",
        "”",
        "“",
        "’",
        "……",
        "......",
        ".......",
        "?",
        "!",
        " ",
        "  ",
        "\n",
        "\n \n",
        "\t",
        "　",
        "\r\n",
    ]
    pieces += ["😀", "GPT-4", "3.14", "hello", "50%", '{"a": 1}', "北京", "人民", "今天天气", "the", "\u00a0", "\u2028"]
    pairs = []
    for _ in range(count):
        label = [rng.choice(pieces) for _ in range(rng.choice([0, 1, 2, 3, 5, 8, 20, 60]))]
        prediction = [rng.choice(pieces) if rng.random() < 0.2 else piece for piece in label if rng.random() < 0.9]
        pairs.append(("".join(prediction), "".join(label)))
    return pairs


def test_a_thousand_random_pairs_equal_the_packages_llama_factory_uses():
    rouge_chinese = pytest.importorskip("rouge_chinese")
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    import jieba

    jieba.setLogLevel(logging.CRITICAL)
    predictions, labels = zip(*random_pairs(1000), strict=True)
    rouges, bleus = rouge(predictions, labels, OPTIONS).per_row, bleu4(predictions, labels, OPTIONS).per_row
    smoothing = nltk_bleu.SmoothingFunction().method3
    for prediction, label, rouge_row, bleu_row in zip(predictions, labels, rouges, bleus, strict=True):
        ours, theirs = " ".join(jieba.cut(prediction)), " ".join(jieba.cut(label))
        empty = not ours.split() or not theirs.split()
        scores = {} if empty else rouge_chinese.Rouge().get_scores(ours, theirs)[0]
        for name in ("rouge-1", "rouge-2", "rouge-l"):
            assert rouge_row[name] == (0 if empty else round(scores[name]["f"] * 100, 4)), (prediction, label)
        bleu = nltk_bleu.sentence_bleu([list(label)], list(prediction), smoothing_function=smoothing)
        assert bleu_row["bleu-4"] == round(bleu * 100, 4), (prediction, label)
