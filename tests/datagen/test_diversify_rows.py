"""The least similar half: every theme stays, near copies go, and the order of the rows changes nothing."""

import random

import numpy as np
import pytest

from llmforge.datagen.diversify import diversify, nearest_similarity, vectors

SYLLABLES = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]


def themes() -> list[str]:
    """10 themes with 100 near copies each, and 100 single rows."""
    rng = random.Random(1)
    rows = []
    for theme in range(10):
        base = "".join(rng.choices(SYLLABLES, k=40))
        for _ in range(100):
            letters = list(base)
            for place in rng.sample(range(40), 2):
                letters[place] = rng.choice(SYLLABLES)
            rows.append(f"主题{theme}：" + "".join(letters))
    return rows + ["".join(rng.choices(SYLLABLES, k=40)) for _ in range(100)]


@pytest.fixture(scope="module")
def rows() -> list[str]:
    return themes()


@pytest.fixture(scope="module")
def half(rows):
    return diversify(rows, 0.5)


def test_similarity_falls_by_a_third_and_every_theme_stays(rows, half):
    assert half.similarity_after < 0.7 * half.similarity_before
    themes_left = {rows[i][:3] for i in half.kept if rows[i].startswith("主题")}
    assert len(themes_left) == 10
    assert len(half.kept) <= 0.5 * len(rows) + len(half.clusters)
    assert all(kept > 0 for _, kept in half.clusters)


def test_the_order_of_the_rows_changes_nothing(rows, half):
    order = list(range(len(rows)))
    random.Random(2).shuffle(order)
    shuffled = [rows[i] for i in order]
    again = diversify(shuffled, 0.5)
    assert sorted(shuffled[i] for i in again.kept) == sorted(rows[i] for i in half.kept)
    assert again.similarity_after == pytest.approx(half.similarity_after, abs=1e-6)


def test_without_near_copies_the_share_is_taken_from_every_cluster(rows):
    some = diversify(rows, 0.5, near=1.0, max_clusters=10)
    assert some.copies == []
    assert len(some.clusters) <= 10
    assert 0.5 * len(rows) <= len(some.kept) <= 0.5 * len(rows) + len(some.clusters)
    assert all(kept == -(-size // 2) for size, kept in some.clusters)


def test_everything_stays_when_nothing_is_too_much():
    assert diversify(["甲乙丙丁", "子丑寅卯", "天地玄黄"], 1.0).kept == [0, 1, 2]
    assert diversify(["甲乙丙丁", "甲乙丙丁"], 0.5).kept == [0]
    assert diversify([], 0.5).kept == []


def test_equal_texts_have_similarity_1_and_strange_ones_about_0():
    same, other = (
        vectors(["前方现场指挥所", "前方现场指挥所", "abcdefgh"])[[0, 1]],
        vectors(["前方现场指挥所", "abcdefgh"]),
    )
    assert nearest_similarity(same) == pytest.approx(1.0)
    assert abs(nearest_similarity(other)) < 0.2
    assert nearest_similarity(np.zeros((1, 4), np.float32)) == 0.0
