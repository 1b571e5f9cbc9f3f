"""Whole trainings of rm, dpo and kto on the tiny model: what is logged, saved, resumed, and what is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from llmforge.errors import RecipeError, RunError
from llmforge.train import reference

WORDS = ("printer", "floor", "password", "yes", "no", "label", "system", "urgent", "flow", "wind", "tool", "again")
ASK = "Say the word {}, please, and do not add anything else to it."


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = [{"instruction": ASK.format(w), "chosen": w, "rejected": f"{w}, but why"} for w in WORDS]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.json", rows)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    rows = [
        {"instruction": ASK.format(w), "output": w if i % 2 else f"{w}, but why", "label": bool(i % 2)}
        for i, w in enumerate(WORDS)
    ]
    return write(tmp_path_factory.mktemp("verdicts") / "verdicts.json", rows)


def losses(log):
    return [line["loss"] for line in log if "loss" in line]


def weights(run):
    return {path.name: load_file(path) for path in run.glob("*.safetensors") if path.name != reference.FILE}


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensors in one.items():
        assert tensors.keys() == other[name].keys()
        assert all(torch.equal(tensor, other[name][key]) for key, tensor in tensors.items()), name


# dpo


@pytest.mark.parametrize("asked_before", [True, False])
@pytest.mark.parametrize("batching", ["tree", "padded"])
def test_the_first_step_of_dpo_costs_ln_2(batching, asked_before, train, pairs, log_of):
    run = train(stage="dpo", dataset=pairs, batching=batching, precompute_ref_log_probs=asked_before)
    log = log_of(run)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["loss"] < math.log(2)
    assert log[-1]["rewards/margins"] > 0
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected"} <= log[
        0
    ].keys()
    assert (run / reference.FILE).exists() == asked_before


def test_a_reference_asked_once_is_the_one_asked_for_each_batch(train, pairs, log_of):
    once, each = (
        losses(log_of(train(f"run{asked}", stage="dpo", dataset=pairs, precompute_ref_log_probs=asked)))
        for asked in (True, False)
    )
    assert once == pytest.approx(each, abs=1e-6)


def test_the_whole_model_can_learn_from_pairs_and_keeps_no_second_one(train, pairs, log_of):
    run = train(stage="dpo", dataset=pairs, finetuning_type="full", learning_rate=1e-4)
    assert log_of(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (run / reference.FILE).exists()


def test_an_adapter_that_goes_on_is_its_own_reference(train, pairs, rows_file, log_of):
    first = train("first", dataset=rows_file, num_train_epochs=1)
    run = train("second", stage="dpo", dataset=pairs, adapter_name_or_path=first, num_train_epochs=1)
    assert log_of(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_named_reference_is_another_start(train, pairs, rows_file, tiny_model_dir, log_of):
    other = train("other", dataset=rows_file, learning_rate=1e-2, num_train_epochs=1)
    run = train(stage="dpo", dataset=pairs, ref_model=tiny_model_dir, ref_model_adapters=other)
    assert abs(log_of(run)[0]["rewards/margins"]) > 1e-4
    same_as_start = train("plain", stage="dpo", dataset=pairs, ref_model=tiny_model_dir)
    assert log_of(same_as_start)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("asked_before", [True, False])
def test_a_killed_dpo_run_ends_with_the_weights_of_an_unbroken_one(asked_before, train, pairs, monkeypatch):
    keys = {"stage": "dpo", "dataset": pairs, "save_steps": 1, "precompute_ref_log_probs": asked_before}
    keys |= {"lora_dropout": 0.1, "val_size": 2, "eval_strategy": "steps", "eval_steps": 2}
    unbroken = train("unbroken", **keys)
    with pytest.raises(KeyboardInterrupt):
        _killed_at_step(monkeypatch, 3, lambda: train("killed", **keys))
    monkeypatch.undo()
    resumed = train("killed", **keys, resume_from_checkpoint=True)
    same(weights(unbroken), weights(resumed))


def _killed_at_step(monkeypatch, number, go):
    """As kill -9 in the middle of a step: nothing is saved any more."""
    from llmforge.train.trainer import ForgeTrainer

    step = ForgeTrainer.training_step

    def stops(self, *args, **options):
        if self.state.global_step + 1 == number:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    monkeypatch.setattr(ForgeTrainer, "training_step", stops)
    go()


# rm


def test_a_reward_model_learns_and_saves_its_head(train, pairs, log_of):
    run = train(
        stage="rm", dataset=pairs, num_train_epochs=16, learning_rate=3e-3, val_size=3, eval_strategy="epoch",
    )  # fmt: skip
    log = log_of(run)
    assert {"accuracy", "margin", "rewards/chosen", "rewards/rejected"} <= log[0].keys()
    evaluated = [line for line in log if "eval_accuracy" in line]
    assert evaluated[-1]["eval_accuracy"] > 0.9
    assert evaluated[-1]["eval_margin"] > evaluated[0]["eval_margin"]
    head = load_file(run / "value_head.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {"value_head.weight": (1, 32)}
    assert not any("value_head" in name for name in load_file(run / "adapter_model.safetensors"))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_killed_reward_model_ends_with_the_weights_of_an_unbroken_one(kind, train, pairs, monkeypatch):
    keys = {"stage": "rm", "dataset": pairs, "save_steps": 1, "finetuning_type": kind, "learning_rate": 1e-3}
    unbroken = train("unbroken", **keys)
    with pytest.raises(KeyboardInterrupt):
        _killed_at_step(monkeypatch, 3, lambda: train("killed", **keys))
    monkeypatch.undo()
    resumed = train("killed", **keys, resume_from_checkpoint=True)
    found = weights(unbroken)
    assert set(found) == {
        "value_head.safetensors",
        "model.safetensors" if kind == "full" else "adapter_model.safetensors",
    }
    same(found, weights(resumed))
    assert not any("value_head" in name for name in found.get("model.safetensors", {}))


def test_an_exported_reward_model_keeps_its_head(train, pairs, tmp_path):
    from llmforge.config.load import load_recipe
    from llmforge.export.merge import export

    run = train(stage="rm", dataset=pairs, num_train_epochs=1)
    words = [str(run), "device=cpu", f"export_dir={tmp_path / 'export'}"]
    exported = export(load_recipe(words, "export"))
    head = (run / "value_head.safetensors").read_bytes()
    assert (exported / "value_head.safetensors").read_bytes() == head


def test_a_reward_model_is_gone_on_with(train, pairs, log_of):
    first = train("first", stage="rm", dataset=pairs, num_train_epochs=8, learning_rate=3e-3)
    second = train("second", stage="rm", dataset=pairs, adapter_name_or_path=first, num_train_epochs=1)
    assert log_of(second)[0]["loss"] < losses(log_of(first))[0] - 0.1


# kto


def test_kto_starts_at_a_half_and_tells_both_kinds_apart(train, verdicts, log_of):
    run = train(stage="kto", dataset=verdicts, num_train_epochs=6, kto_chosen_weight=1.0, pref_beta=0.5)
    log = [line for line in log_of(run) if "loss" in line]
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["loss"] < 0.5
    last = log[-3:]
    assert sum(line["rewards/chosen"] for line in last) > sum(line["rewards/rejected"] for line in last)


def test_kto_with_one_kind_of_replies_is_refused(train, tmp_path):
    rows = [
        {"instruction": "Say a.", "output": "a", "label": True},
        {"instruction": "b?", "output": "b", "label": True},
    ]
    with pytest.raises(RecipeError, match="all 2 kto labels are true; kto learns from replies of both kinds"):
        train(stage="kto", dataset=write(tmp_path / "rows.json", rows))


# Rows that teach nothing


def test_rows_that_teach_nothing_are_left_out_by_name(train, tmp_path):
    long = "word " * 300
    rows = [
        {"instruction": "Say a.", "chosen": "a", "rejected": "b"},
        {"instruction": "Say c.", "chosen": "a", "rejected": "a"},
        {"instruction": "Say d.", "chosen": "", "rejected": "a"},
        {"instruction": long, "chosen": "a", "rejected": "b"},
        {"instruction": "Say e.", "chosen": long + "x", "rejected": long + "y"},
        {"instruction": "Say f.", "chosen": "A", "rejected": "B"},
    ]
    run = train(stage="dpo", dataset=write(tmp_path / "rows.json", rows), num_train_epochs=1)
    report = json.loads((run / "data_report.json").read_text())
    reasons = {row["row"]: row["reason"] for step in report["steps"] for row in step["rejected"]}
    assert reasons == {
        2: "chosen and rejected are the same",
        3: "chosen is empty",
        4: "longer than cutoff_len 256 (truncation: right): no room for the reply after the prompt",
        5: "two replies of different rank are the same within cutoff_len 256",
    }


def test_training_does_not_go_on_from_nan(train, pairs):
    with pytest.raises(RunError, match="is nan"):
        train(stage="dpo", dataset=pairs, learning_rate=1e30, num_train_epochs=4, max_grad_norm=0)
