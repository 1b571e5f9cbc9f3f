"""A resumed run repeats an unbroken one bit for bit; a damaged checkpoint is never taken for a whole one."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llmforge.errors import RunError
from llmforge.runs import RunDir
from llmforge.train.checkpoint import FILES, damage, find_checkpoint, prune, seal

CASES = {
    "lora": {"lora_dropout": 0.2, "neftune_noise_alpha": 5},
    "full": {"finetuning_type": "full", "lr_scheduler_type": "cosine", "warmup_steps": 2},
    "packed": {"packing": True, "cutoff_len": 128, "per_device_train_batch_size": 1, "lora_dropout": 0.2},
    "by length": {"group_by_length": True, "gradient_checkpointing": True},
}


def tensors(value):
    if isinstance(value, dict):
        return [t for key in value for t in tensors(value[key])]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    return [value]


def assert_same(one, two):
    name = "adapter_model.safetensors" if (one / "adapter_model.safetensors").exists() else "model.safetensors"
    ours, theirs = load_file(one / name), load_file(two / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    states = [tensors(torch.load(run / "optimizer.pt", weights_only=True)) for run in (one, two)]
    for mine, other in zip(*states, strict=True):
        assert torch.equal(mine, other) if torch.is_tensor(mine) else mine == other


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_in_the_middle_of_an_epoch_equals_an_unbroken_one(case, train, log_of, tmp_path):
    changes = {"save_steps": 3, "max_steps": 8, **CASES[case]}
    whole = train("whole", **changes)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for name in ("checkpoint-6", "checkpoint-8", "train_results.json"):
        (shutil.rmtree if name.startswith("checkpoint") else os.remove)(broken / name)
    train("broken", **changes, resume_from_checkpoint=True)
    assert_same(whole / "checkpoint-8", broken / "checkpoint-8")
    logged = [[(x["current_steps"], x["loss"]) for x in log_of(run) if "loss" in x] for run in (whole, broken)]
    assert logged[0] == logged[1]


@pytest.fixture
def checkpoints(tmp_path):
    """A run folder with the sealed checkpoints 2 and 10."""
    for step in (2, 10):
        temporary = tmp_path / f".checkpoint-{step}.tmp"
        temporary.mkdir()
        (temporary / "weights.bin").write_bytes(bytes(range(100)) * step)
        (temporary / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        seal(temporary, tmp_path / f"checkpoint-{step}")
    return RunDir(tmp_path)


def test_the_newest_whole_checkpoint_is_found(checkpoints):
    found, notices = find_checkpoint(checkpoints, True)
    assert (found.name, notices) == ("checkpoint-10", [])
    assert find_checkpoint(checkpoints, False) == (None, [])


HARM = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte changed": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["weights.bin", "trainer_state.json", FILES])
def test_a_damaged_checkpoint_is_skipped_by_name(checkpoints, harm, name):
    newest = checkpoints.path / "checkpoint-10"
    HARM[harm](newest / name)
    found, notices = find_checkpoint(checkpoints, True)
    assert found.name == "checkpoint-2"
    assert str(newest / name) in notices[0]
    with pytest.raises(RunError, match=name):
        find_checkpoint(checkpoints, str(newest))


def test_a_save_that_was_cut_off_leaves_no_checkpoint(checkpoints):
    half = checkpoints.path / ".checkpoint-20.tmp"
    half.mkdir()
    (half / "weights.bin").write_bytes(b"half")
    assert [folder.name for folder in checkpoints.checkpoints()] == ["checkpoint-10", "checkpoint-2"]


def test_pruning_keeps_the_newest_and_the_best(checkpoints):
    prune(checkpoints, 1, checkpoints.path / "checkpoint-2")
    assert [folder.name for folder in checkpoints.checkpoints()] == ["checkpoint-10", "checkpoint-2"]
    prune(checkpoints, 1, None)
    assert [folder.name for folder in checkpoints.checkpoints()] == ["checkpoint-10"]
    assert damage(checkpoints.path / "checkpoint-10") is None


class Planted:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_planted_in_a_checkpoint_is_not_executed(train, tmp_path):
    run = train(save_steps=1, max_steps=1)
    checkpoint, marker = run / "checkpoint-1", tmp_path / "marker"
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Planted(marker)))
    (checkpoint / FILES).unlink()
    checkpoint.rename(run / "planted")
    seal(run / "planted", checkpoint)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        train(max_steps=2, resume_from_checkpoint=True)
    assert not marker.exists()
