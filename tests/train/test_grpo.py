"""GRPO on the tiny model: replies judged against each other, the same step however it is cut, resuming."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llmforge.errors import RecipeError

PROMPTS = [{"instruction": f"Say something about {thing}."} for thing in ("rain", "a cat", "the printer", "sleep")]
PLUGIN = """
from llmforge.config.names import REWARDS

def low_ids(samples, options):
    return [sum(id < 192 for id in sample.reply_ids) / sample.num_tokens for sample in samples]

REWARDS.add("low_ids", low_ids)
"""


@pytest.fixture
def grpo(train, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    (tmp_path / "rewards.py").write_text(PLUGIN, encoding="utf-8")

    def go(out="run", **changes):
        keys = {
            "stage": "grpo", "dataset": tmp_path / "prompts.json", "plugins": tmp_path / "rewards.py",
            "reward_funcs": "low_ids", "max_new_tokens": 6, "num_generations": 4, "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1, "max_steps": 2, "lora_rank": 4,
        }  # fmt: skip
        return train(out, **keys | changes)

    return go


def assert_close(one, two, atol):
    mine, other = (load_file(run / "adapter_model.safetensors") for run in (one, two))
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(other[name], mine[name], atol=atol, rtol=0)


def test_the_reward_rises_and_the_replies_to_a_prompt_share_it(grpo, log_of):
    run = grpo(
        max_steps=30,
        per_device_train_batch_size=16,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        additional_target="lm_head",
    )
    rewards = [line["reward"] for line in log_of(run)]

    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    results = json.loads((run / "train_results.json").read_text())
    assert results["computed_tokens"] < 0.5 * results["tokens"]
    assert not (run / "critic").exists()


@pytest.mark.parametrize("loss", ["reply", "token"])
def test_a_step_does_not_depend_on_how_it_is_cut(loss, grpo):
    keys = {"grpo_loss": loss, "grpo_kl_coef": 0.05, "ppo_epochs": 2}
    whole = grpo("whole", **keys)
    small = grpo("small", **keys, gradient_accumulation_steps=4, per_device_train_batch_size=2, tokens_per_pass=64)
    assert_close(whole, small, 5e-6)
    assert_close(whole, grpo("padded", **keys, batching="padded"), 5e-6)


def test_asking_nobody_for_old_probabilities_changes_nothing(grpo, monkeypatch):
    """The step that learns from its replies once takes them from its own pass; a KL term of no weight asks for them."""
    assert_close(grpo("short"), grpo("asked", grpo_kl_coef=1e-12), 1e-6)


def test_a_resumed_run_equals_an_unbroken_one(grpo, tmp_path):
    changes = {"save_steps": 1, "max_steps": 4, "ppo_epochs": 2, "grpo_kl_coef": 0.1}
    whole, broken = grpo("whole", **changes), tmp_path / "broken"
    shutil.copytree(whole, broken)
    os.remove(broken / "train_results.json")
    shutil.rmtree(broken / "checkpoint-4")
    grpo("broken", **changes, resume_from_checkpoint=True)
    assert_close(whole, broken, 0)


def test_an_adapter_that_is_continued_is_its_own_reference(grpo, log_of, tmp_path):
    first = grpo("first", learning_rate=1e-2)
    second = grpo("second", adapter_name_or_path=first, grpo_kl_coef=0.1)
    lines = log_of(second)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)  # measured from the start of this run, not from the base
    assert lines[1]["kl"] != 0


def test_one_reply_has_nothing_to_be_judged_against(grpo):
    with pytest.raises(RecipeError, match="num_generations: 1 reply has no others to be judged against"):
        grpo(num_generations=1)
