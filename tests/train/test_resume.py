"""A resumed run repeats an unbroken one bit for bit; a damaged checkpoint is never taken for a whole one."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import sys

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


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoints_before_it(train, tmp_path):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = train(save_steps=1, max_steps=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))  # the optimizer's file is larger
    try:
        with pytest.raises(RunError, match=r"checkpoint-2 could not be written.*before it are whole"):
            train(save_steps=1, max_steps=2, resume_from_checkpoint=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert find_checkpoint(RunDir(run), True)[0].name == "checkpoint-1"
    assert not list(run.glob(".checkpoint-*"))
    assert RunDir(run).read_state().state == "failed"


FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def die_at(count: int):
    """End this process at the count-th thing it does to a file; renames and removals happen after their event."""

    def hook(event, args):
        nonlocal count
        if event in FILE_EVENTS:
            count -= 1
            if count == 0:
                os._exit(9)

    return hook


def test_a_process_may_die_at_any_moment_of_a_save(tmp_path):
    def write(step):
        temporary = tmp_path / f".checkpoint-{step}.tmp"
        temporary.mkdir()
        for name in ("weights.bin", "trainer_state.json"):
            (temporary / name).write_bytes(b"x" * 1000)
        seal(temporary, tmp_path / f"checkpoint-{step}")
        prune(RunDir(tmp_path), 1, None)

    write(1)
    for moment in range(1, 200):
        child = os.fork()
        if child == 0:
            sys.addaudithook(die_at(moment))
            write(moment + 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found, notices = find_checkpoint(RunDir(tmp_path), True)
        assert found is not None
        assert notices == []
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert 15 < moment < 199
    assert [folder.name for folder in RunDir(tmp_path).checkpoints()] == [f"checkpoint-{moment + 1}"]
