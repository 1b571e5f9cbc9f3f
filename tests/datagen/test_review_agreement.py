"""Numbers about reviews, checked by hand."""

import pytest

from llmforge.datagen.agreement import cohen_kappa, error_rate
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.review import Review
from llmforge.datagen.review_command import told_summary


def test_two_bad_of_80_is_2_5_percent_between_0_7_and_8_7():
    rate = error_rate(80, 2)
    assert str(rate) == "checked 80, 2 bad: error 2.5%, 95 % interval 0.7-8.7%"
    # p = 1/40, z^2/n = 0.048018: middle 0.049009 / 1.048018, half 1.959964 sqrt(0.00030469 + 0.00015006) / 1.048018
    assert rate.low == pytest.approx(0.006881, abs=1e-5)
    assert rate.high == pytest.approx(0.086645, abs=1e-5)


def test_none_bad_still_has_an_upper_end():
    assert error_rate(10, 0)[3:] == pytest.approx((0.0, 0.277533), abs=1e-5)  # z^2 / (n + z^2) = 3.841459 / 13.841459
    assert error_rate(10, 10)[3:] == pytest.approx((1 - 0.277533, 1.0), abs=1e-5)
    with pytest.raises(ValueError, match="is no sample"):
        error_rate(0, 0)


def test_kappa_of_the_textbook_table():
    # 50 rows: both yes 20, first alone 5, second alone 10, both no 15: po 0.7, pe (25*30 + 25*20) / 2500 = 0.5
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == (50, 0.7, 0.5, pytest.approx(0.4))


def test_kappa_is_undefined_when_both_always_say_the_same():
    assert cohen_kappa(["a", "a"], ["a", "a"]) == (2, 1.0, 1.0, None)
    with pytest.raises(ValueError, match="cannot be compared"):
        cohen_kappa([], [])


def rows(count: int) -> list[tuple[str, dict]]:
    return [(f"r{i}", {"instruction": f"q{i}", "output": "a"}) for i in range(count)]


def test_a_sample_is_drawn_by_seed_and_id_and_its_error_rate_told(tmp_path):
    recipe = load_dataset_recipe(["calibrate.sample=0.1", "seed=7"], "calibrate")
    review = Review(tmp_path, rows(800), recipe)
    assert len(review.order) == 80
    assert Review(tmp_path, rows(800)[::-1], recipe).order == review.order
    assert Review(tmp_path, rows(800), load_dataset_recipe(["calibrate.sample=0.1"], "calibrate")).order != review.order
    patches = [
        review.decision(review.item(id), "rejected" if i < 2 else "accepted", "wang")
        for i, id in enumerate(review.order)
    ]
    from llmforge.datagen.patches import append_patches

    append_patches(tmp_path, patches)
    summary = review.summary()
    assert summary["states"] == {"pending": 720, "accepted": 78, "edited": 0, "rejected": 2, "skipped": 0}
    assert "checked 80, 2 bad: error 2.5%, 95 % interval 0.7-8.7%" in told_summary(summary)


def test_two_reviewers_are_compared_on_rows_both_decided(tmp_path):
    review = Review(tmp_path, rows(6), load_dataset_recipe([], "calibrate"))
    for id, first, second in (
        ("r0", "accepted", "accepted"),
        ("r1", "accepted", "rejected"),
        ("r2", "rejected", "rejected"),
        ("r3", "accepted", "accepted"),
    ):
        review.decide(id, first, "li")
        review.decide(id, second, "wang")
    review.decide("r4", "accepted", "li")
    review.decide("r5", "skipped", "li")
    review.decide("r5", "accepted", "wang")
    (pair,) = review.summary()["agreement"]
    # po 3/4; li says accepted 3 of 4, wang 2 of 4: pe (3*2 + 1*2) / 16 = 0.5
    assert pair == {
        "reviewers": ["li", "wang"], "rows": 4, "observed": 0.75, "expected": 0.5, "kappa": 0.5, "differ": 1,
    }  # fmt: skip
    assert "li and wang: 4 rows in common, 1 differ, Cohen's kappa 0.50" in told_summary(review.summary())
