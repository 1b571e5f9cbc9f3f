"""Two ranks on gloo learn what one rank learns: DDP here, DeepSpeed ZeRO 0, 2 and 3 in the slow suite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmforge.runs import RunDir

CONFIGS = Path(__file__).parents[2] / "configs/deepspeed"
# 20 rows: a step of 12 and a short one of 8, in which the second rank has one row less, or a filler.
CHANGES = {"num_train_epochs": 2, "save_steps": 3, "val_size": 3, "eval_strategy": "steps", "eval_steps": 2}


def under_ranks(words: list[str], ranks: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "llmforge.cli", "train", *words, f"launch.nproc={ranks}"]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=False
    )


def assert_same(one: Path, two: Path, log_of) -> None:
    for key in ("loss", "eval_loss", "supervised_tokens"):
        ours, theirs = ([line[key] for line in log_of(run) if key in line] for run in (one, two))
        assert theirs == pytest.approx(ours, rel=1e-5)
    mine, other = (load_file(run / "adapter_model.safetensors") for run in (one, two))
    assert set(mine) == set(other)
    for name in mine:
        assert other[name].shape == mine[name].shape
        torch.testing.assert_close(other[name], mine[name], atol=2e-6, rtol=0)
    assert any(tensor.any() for name, tensor in other.items() if "lora_B" in name)


def check_ranks(words, train, log_of, resume=False, **changes):
    one = train("one", **CHANGES, per_device_train_batch_size=12, gradient_accumulation_steps=1)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    done = under_ranks(words("two", **CHANGES, **cut, **changes), 2)
    two = one.parent / "two"
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(one, two, log_of)
    assert done.stderr.count("trainable:") == 1  # rank 0 alone speaks
    assert json.loads((two / "train_results.json").read_text())["steps"] == 4
    if not resume:
        return
    again = under_ranks(words("two", **CHANGES, **cut, **changes, max_steps=5, resume_from_checkpoint=True), 2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert RunDir(two).read_state().step == 5


def test_ddp_equals_one_rank(words, train, log_of):
    check_ranks(words, train, log_of)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z0", "z2", "z3"])
def test_deepspeed_equals_one_rank(name, words, train, log_of):
    check_ranks(words, train, log_of, resume=True, deepspeed=CONFIGS / f"{name}.json")


@pytest.fixture(scope="module")
def unequal_rows(tmp_path_factory) -> Path:
    """Rows of 20 to 230 tokens; each step has long ones, which fall to one rank or the other."""
    rows = [
        {"instruction": "Classify.", "input": f"{i} " + "word " * (200 if i % 5 == 0 else i % 3), "output": "yes"}
        for i in range(20)
    ]
    path = tmp_path_factory.mktemp("unequal") / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["ddp", "z2", "z3"])
def test_very_unequal_rows_keep_no_rank_waiting(name, checkpointing, words, train, log_of, unequal_rows):
    changes = {} if name == "ddp" else {"deepspeed": CONFIGS / f"{name}.json"}
    one = train("one", **CHANGES, dataset=unequal_rows, per_device_train_batch_size=12, gradient_accumulation_steps=1)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "gradient_checkpointing": checkpointing}
    done = under_ranks(words("two", **CHANGES, **cut, **changes, dataset=unequal_rows), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(one, one.parent / "two", log_of)


@pytest.mark.slow
def test_ddp_goes_on_from_a_checkpoint(words, train, log_of):
    check_ranks(words, train, log_of, resume=True)


@pytest.mark.slow
def test_a_mistake_is_told_once_with_its_exit_code(words, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    done = under_ranks(words(dataset=bad), 2)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("bad.json has no usable row") == 1


def test_ppo_under_ddp_draws_and_learns_what_one_rank_does(words, train, log_of, tmp_path):
    rows = [{"instruction": f"Say something about {thing}."} for thing in ("rain", "a cat", "sleep", "tea")]
    (tmp_path / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")
    changes = {
        "stage": "ppo", "dataset": tmp_path / "prompts.json", "reward_funcs": "ended", "max_new_tokens": 6,
        "max_steps": 3, "lora_rank": 4, "val_size": 2, "eval_strategy": "steps", "eval_steps": 1, "ppo_epochs": 1,
        "ppo_whiten_advantages": True,
    }  # fmt: skip
    one = train("one", **changes, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    done = under_ranks(words("two", **changes, **cut), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    two = one.parent / "two"
    for key in ("loss", "reward", "kl", "reply_tokens", "eval_reward"):
        ours, theirs = ([line[key] for line in log_of(run) if key in line] for run in (one, two))
        assert theirs == pytest.approx(ours, abs=1e-4)
    for name in (
        "adapter_model.safetensors",
        "critic/adapter_model.safetensors",
        "actor_ema/adapter_model.safetensors",
    ):
        mine, other = (load_file(run / name) for run in (one, two))
        for key in mine:
            torch.testing.assert_close(other[key], mine[key], atol=5e-6, rtol=0)
