import json
from dataclasses import replace

import numpy as np
import pytest

from llmforge.config.schema import DataConfig
from llmforge.data.build import build_data
from llmforge.data.example import IGNORE, Encoded, EncodedSet
from llmforge.data.mix_counts import apportion, draw_rows, epoch_counts, probabilities
from llmforge.data.mix_table import mix_table, table_lines
from llmforge.data.rows import ChosenRows, rows_of
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.train.steps import StepPlan, StepShape, step_loader

NAMES = ["a", "b", "c"]


def test_log_size_gives_the_shares_of_the_lecture():
    sizes = [76_300, 112_000, 19_600, 349_000, 3_460, 16_844_000]
    wanted = [0.1599, 0.1654, 0.1406, 0.1815, 0.1159, 0.2367]
    assert probabilities(sizes, "log_size") == pytest.approx(wanted, abs=1e-4)


def test_proportional_equal_and_temperature_are_as_written_by_hand():
    assert probabilities([1, 3], "proportional").tolist() == [0.25, 0.75]
    assert probabilities([1, 3], "equal").tolist() == [0.5, 0.5]
    assert probabilities([4, 16], "temperature", temperature=2).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert probabilities([4, 16], "temperature", temperature=1).tolist() == [0.2, 0.8]
    assert probabilities([4, 16], "equal", weights=[3, 1]).tolist() == [0.75, 0.25]


def test_log_size_refuses_a_set_of_one_row():
    with pytest.raises(RecipeError, match="at least 2 rows"):
        probabilities([1, 10], "log_size")


def test_apportioned_counts_add_up_and_are_nearest_to_the_shares():
    assert apportion(10, np.array([1.0, 1.0, 1.0])).tolist() == [4, 3, 3]
    draw = np.random.default_rng(0)
    for _ in range(100):
        total, shares = int(draw.integers(0, 1000)), draw.random(5) + 0.01
        counts = apportion(total, shares)
        assert counts.sum() == total
        assert np.abs(counts - total * shares / shares.sum()).max() < 1


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ({}, [20, 20, 20]),
        ({"mix_caps": {"a": 5, "b": 10}}, [5, 10, 20]),  # caps 5, 10 and all
        ({"mix_counts": {"a": 50}}, [50, 20, 20]),
        ({"mix_groups": {"g": ["a", "b"]}, "mix_caps": {"g": 10}}, [5, 5, 20]),
        ({"mix_groups": {"g": ["a", "b"]}, "mix_caps": {"g": 12, "a": 5}}, [2, 10, 20]),
        ({"domain_ratio": 0.5, "domain_datasets": ["a"]}, [20, 10, 10]),
        ({"domain_ratio": 0.2, "domain_datasets": ["a"]}, [10, 20, 20]),
        ({"mix_strategy": "equal", "mix_rows": 9}, [3, 3, 3]),
        ({"mix_strategy": "equal", "mix_rows": 8, "mix_weights": {"c": 2}}, [2, 2, 4]),
        ({"mix_strategy": "equal", "mix_rows": 90, "mix_repeat": False}, [20, 20, 20]),
    ],
)
def test_counts_caps_groups_and_ratio(keys, counts):
    assert epoch_counts(NAMES, [20, 20, 20], DataConfig(**keys)).tolist() == counts


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mix_caps": {"aa": 5}}, "mix_caps: 'aa' is no data set and no group. Did you mean 'a'"),
        ({"mix_counts": {"x": 5}}, "mix_counts: 'x' is none of the data sets"),
        ({"mix_counts": {"a": 0}}, "mix_counts: a: got 0, expected a whole number above 0"),
        ({"mix_caps": {"a": True}}, "mix_caps: a: got True"),
        ({"mix_strategy": "equal", "mix_weights": {"a": -1}}, "mix_weights: a: got -1, expected a number above 0"),
        ({"mix_groups": {"g": ["a"], "h": ["a"]}}, "'a' is in g and in h"),
        ({"domain_ratio": 0.5, "domain_datasets": ["a", "b", "c"]}, "both are needed for a ratio"),
    ],
)
def test_what_cannot_be_had_is_refused(keys, message):
    with pytest.raises(RecipeError, match=message):
        epoch_counts(NAMES, [20, 20, 20], DataConfig(**keys))


def test_every_row_comes_before_any_comes_again():
    seen = np.concatenate([draw_rows(10, 4, (1, 0), epoch) for epoch in range(5)])
    assert sorted(seen.tolist()) == sorted([*range(10), *range(10)])
    assert sorted(draw_rows(3, 8, (1, 0), 0).tolist()) in [sorted([0, 1, 2] * 2 + list(rest)) for rest in pairs(3)]
    assert draw_rows(10, 0, (1, 0), 0).tolist() == []


def pairs(count):
    return [(i, j) for i in range(count) for j in range(i)]


def test_epochs_differ_and_each_depends_on_seed_and_number_alone():
    draws = [draw_rows(100, 10, (seed, 0), epoch).tolist() for seed, epoch in [(1, 0), (1, 1), (2, 0), (1, 0)]]
    assert draws[0] == draws[3]
    assert draws[0] != draws[1] != draws[2] != draws[0]


def test_chosen_rows_are_the_rows_that_were_chosen():
    one = EncodedSet.of([Encoded([1, 2], [IGNORE, 2]), Encoded([3], [IGNORE])], [0, 2])
    two = EncodedSet.of([Encoded([4, 5, 6], [IGNORE, 5, 6])])
    rows = ChosenRows([one, two], np.array([1, 0, 0, 1]), np.array([0, 1, 0, 0]), np.arange(4))
    assert [row.input_ids for row in rows] == [[4, 5, 6], [3], [1, 2], [4, 5, 6]]
    assert rows.lengths.tolist() == [3, 1, 2, 3]
    assert rows.learned.tolist() == [2, 0, 1, 2]
    assert rows.ids_of(2).tolist() == [1, 2]
    assert rows.input_ids.tolist() == [4, 5, 6, 3, 1, 2, 4, 5, 6]
    places, owners = rows_of(np.array([2, 1, 0, 2]), one)  # example 1 was rejected
    assert (places.tolist(), owners.tolist()) == ([1, 0, 1], [0, 2, 3])


def test_the_table_counts_rows_tokens_and_learned_tokens():
    encoded = EncodedSet.of(
        [Encoded([1, 2, 3], [IGNORE, 2, 3]), Encoded([1], [IGNORE]), Encoded([5] * 4, [IGNORE, 5, 5, 5])], [0, 2, 1]
    )
    a, b = mix_table(encoded, [("a", np.array([0]), 1), ("b", np.array([1, 2]), 2)])
    assert (a.dataset, a.rows, a.tokens, a.learned, a.share) == ("a", 1, 3, 2, 0.375)
    assert (b.dataset, b.rows, b.tokens, b.learned, b.share) == ("b", 2, 5, 3, 0.625)
    assert [line.split() for line in table_lines([a, b])] == [
        ["data", "set", "has", "rows", "rows", "tokens", "learned", "share"],
        ["a", "1", "1", "3", "2", "37.5%"],
        ["b", "2", "2", "5", "3", "62.5%"],
    ]


# ---- in a run


@pytest.fixture
def built(tmp_path, monkeypatch, tiny_tokenizer_dir, data_recipe):
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    template = get_template("chatml", tokenizer, default_system="")
    for name, count in (("a", 8), ("b", 30), ("c", 4)):
        rows = [{"instruction": f"{name}{i}", "output": "x"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def build(**data):
        told = data_recipe(tmp_path, dataset=["a.jsonl", "b.jsonl", "c.jsonl"], **data)
        return build_data(told, tokenizer, template)

    return build


def names_of(data, epoch):
    return [data.train_examples[data.train.examples[row]].dataset for row in data.epoch_rows(epoch)]


def test_caps_are_exact_in_every_epoch_and_rows_are_drawn_anew(built):
    data = built(mix_caps={"a": 5, "b": 10})
    for epoch in range(3):
        names = names_of(data, epoch)
        assert [names.count(name) for name in NAMES] == [5, 10, 4]
    assert data.epoch_rows(0).tolist() != data.epoch_rows(1).tolist()
    assert built(mix_caps={"a": 5, "b": 10}).epoch_rows(1).tolist() == data.epoch_rows(1).tolist()
    assert [(share.dataset, share.available, share.rows) for share in data.mixture] == [
        ("a", 8, 5), ("b", 30, 10), ("c", 4, 4),
    ]  # fmt: skip
    assert built().epoch_rows is None


def test_small_sets_come_again_under_log_size(built):
    data = built(mix_strategy="log_size")
    names = names_of(data, 0)
    assert len(names) == 42
    assert [names.count(name) for name in NAMES] == [13, 21, 8]
    held = built(mix_strategy="log_size", val_size=12)
    assert len(held.evals["validation"]) == 12
    assert len(held.epoch_rows(0)) == 30


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_order_is_the_same_on_any_number_of_workers(built, workers):
    data = built(mix_strategy="temperature", mix_rows=20)

    def rows(num_workers, rank=0, ranks=1):
        plan = StepPlan(data.train, StepShape(2, 2, ranks, rank), seed=3, pad_id=0, epoch_rows=data.epoch_rows)
        loader = step_loader(plan, num_workers)
        found = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            found.append([[batch.rows.tolist() for batch in step] for step in loader])
        return found

    assert rows(workers) == rows(0)
    flat = sorted(row for step in rows(workers)[1] for batch in step for row in batch)
    assert flat == sorted(data.epoch_rows(1).tolist())


def test_packed_epochs_have_the_same_number_of_steps(built):
    data = built(mix_strategy="equal", mix_rows=12)
    plan = StepPlan(data.train, StepShape(1, 2), seed=3, pad_id=0, pack_to=40, epoch_rows=data.epoch_rows)
    for epoch in range(3):
        assert len(plan.order(epoch)) == len(plan.order(0))
        assert all(plan[epoch, step] for step in range(plan.num_steps))


def test_plain_text_is_drawn_by_blocks(built, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one two three four"}\n' * 40, encoding="utf-8")
    data = built(stage="pt", cutoff_len=16, mix_strategy="equal")
    counts = [share.rows for share in data.mixture]
    assert max(counts) - min(counts) <= 1
    assert replace(data.mixture[0], share=0.0).dataset == "a"
