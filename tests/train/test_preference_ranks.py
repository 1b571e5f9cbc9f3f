"""Two ranks on gloo learn from preferences what one rank learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ZERO_2 = Path(__file__).parents[2] / "configs/deepspeed/z2.json"
ASK = "Say the word {}, please, and do not add anything else to it."
SHARED = {"num_train_epochs": 2, "val_size": 3, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}


def rows(stage):
    words = ("printer", "floor", "password", "yes", "no", "label", "system", "urgent", "flow", "wind", "tool", "again")
    if stage != "kto":
        return [{"instruction": ASK.format(w), "chosen": w, "rejected": f"{w}, but why"} for w in words]
    return [
        {"instruction": ASK.format(w), "output": w if i % 2 else f"{w}, but why", "label": bool(i % 2)}
        for i, w in enumerate(words)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("rm", {}),
        ("dpo", {"precompute_ref_log_probs": True}),
        ("dpo", {"precompute_ref_log_probs": False}),
        ("kto", {}),
        ("rm", {"deepspeed": ZERO_2}),
        ("dpo", {"deepspeed": ZERO_2}),
        ("kto", {"deepspeed": ZERO_2}),
    ],
)
def test_two_ranks_equal_one(stage, keys, words, train, log_of, tmp_path):
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(stage)), encoding="utf-8")
    shared = {"stage": stage, "dataset": data, **SHARED}
    alone = {key: value for key, value in keys.items() if key != "deepspeed"}
    one = train("one", **shared, **alone, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    given = words("two", **shared, **keys, per_device_train_batch_size=2, gradient_accumulation_steps=1)
    command = [sys.executable, "-m", "llmforge.cli", "train", *given, "launch.nproc=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = one.parent / "two"
    for key in ("loss", "eval_loss", "rewards/chosen", "eval_rewards/rejected"):
        ours, theirs = ([line[key] for line in log_of(run) if key in line] for run in (one, two))
        assert ours
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    for name in ("adapter_model.safetensors", *(["value_head.safetensors"] if stage == "rm" else [])):
        mine, other = load_file(one / name), load_file(two / name)
        assert mine.keys() == other.keys()
        for key in mine:
            torch.testing.assert_close(other[key], mine[key], atol=2e-6, rtol=0)
