"""PPO on the tiny model: roles, roll-outs, a rising reward, resuming, what it says about bad input."""

from __future__ import annotations

import json

import pytest

PROMPTS = [{"instruction": f"Say something about {thing}."} for thing in ("rain", "a cat", "the printer", "sleep") * 4]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def ppo(train, prompts):
    def go(out="run", **changes):
        keys = {
            "stage": "ppo", "dataset": prompts, "reward_funcs": "regex", "reward_pattern": "(a|e|i)",
            "max_new_tokens": 6, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
            "max_steps": 3, "lora_rank": 4,
        }  # fmt: skip
        return train(out, **keys | changes)

    return go


def test_ppo_runs(ppo, log_of):
    run = ppo()
    print(log_of(run))
