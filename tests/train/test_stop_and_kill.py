"""Real processes: a signal saves and names what was saved, a killed run goes on where its last checkpoint was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from llmforge.errors import RunError
from llmforge.process import process_start
from llmforge.runs import RunDir
from llmforge.runs_command import main as runs

CHANGES = {"num_train_epochs": 4000, "save_steps": 5, "lora_dropout": 0.1, "lr_scheduler_type": "constant"}


def start(words) -> subprocess.Popen:
    command = [sys.executable, "-m", "llmforge.cli", "train", *words]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=one_thread)


def wait_for_step(process: subprocess.Popen, run: RunDir, step: int, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        if run.log_path.is_file() and any(
            json.loads(line)["current_steps"] >= step for line in run.log_path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ):  # fmt: skip
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1][-2000:]}")


def test_a_stopped_run_is_saved_and_resumed_it_equals_an_unbroken_one(words, train, tmp_path, capsys):
    run = RunDir(tmp_path / "stopped")
    process = start(words("stopped", **CHANGES))
    wait_for_step(process, run, 3)
    assert run.read_state().state == "running"
    assert run.read_state().more["process_start"] == process_start(process.pid)
    with pytest.raises(RunError, match=f"in use by process {process.pid}"):
        train("stopped", **CHANGES)
    assert runs(["stop", str(run.path), "--timeout", "60"]) == 0  # sends SIGTERM and waits
    assert "stopped, saved" in capsys.readouterr().out
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143

    state = run.read_state()
    newest = run.checkpoints()[0]
    assert (state.state, state.more["saved"], state.step) == ("stopped", str(newest), int(newest.name[11:]))
    assert f"forge-cli train {run.path} resume_from_checkpoint=true" in said

    last = state.step + 3
    train("stopped", **{**CHANGES, "max_steps": last, "save_steps": last}, resume_from_checkpoint=True)
    whole = train("whole", **{**CHANGES, "max_steps": last, "save_steps": last})
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (run.path, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_killed_run_is_lost_and_its_folder_can_be_gone_on_with(words, train, tmp_path, capsys):
    run = RunDir(tmp_path / "killed")
    process = start(words("killed", **CHANGES))
    wait_for_step(process, run, 6)
    process.kill()
    process.communicate()
    assert run.read_state().state == "lost"
    step = int(run.checkpoints()[0].name[11:])
    train("killed", **{**CHANGES, "max_steps": step + 1}, resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert f"took over the lock of process {process.pid}, which is gone" in said
    assert f"going on from {run.path}/checkpoint-{step}" in said
    assert run.read_state().state == "finished"


LOW_IDS = """
from llmforge.config.names import REWARDS
REWARDS.add("low_ids", lambda samples, options: [sum(i < 192 for i in s.reply_ids) / s.num_tokens for s in samples])
"""
STAGES = {
    "dpo": {"precompute_ref_log_probs": True},
    # Roll-outs of four steps, so that most checkpoints lie within one; no more replies than a step learns from twice.
    "ppo": {"max_new_tokens": 4, "ppo_epochs": 2, "ppo_buffer_size": 2, "reward_funcs": "low_ids"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_of_any_stage_ends_with_the_weights_of_an_unbroken_one(stage, words, train, tmp_path):
    rows = [{"instruction": f"Say {w}.", "chosen": w, "rejected": f"not {w}"} for w in ("yes", "no", "floor", "rain")]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    keys = {**CHANGES, **STAGES[stage], "stage": stage, "dataset": tmp_path / "pairs.json", "save_steps": 1}
    if stage == "ppo":
        (tmp_path / "rewards.py").write_text(LOW_IDS, encoding="utf-8")
        keys |= {"plugins": tmp_path / "rewards.py", "lora_dropout": 0.0}
    run = RunDir(tmp_path / "killed")
    process = start(words("killed", **keys))
    wait_for_step(process, run, 6)
    process.kill()
    process.communicate()
    last = int(run.checkpoints()[0].name[11:]) + 3
    train("killed", **keys, max_steps=last, resume_from_checkpoint=True)
    whole = train("whole", **keys, max_steps=last)
    files = sorted(path.relative_to(whole) for path in whole.glob("**/*.safetensors") if "checkpoint" not in str(path))
    assert len(files) == {"dpo": 2, "ppo": 4}[stage]  # with the reference's numbers; with critic, its head and average
    for name in files:
        mine, theirs = load_file(run.path / name), load_file(whole / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


TWO_SIGNALS = """
import time
from llmforge.train.stop import StopSignal
stop = StopSignal(lambda number: print("first", number, flush=True), lambda number: print("second", number, flush=True))
stop.deferred = True
with stop.installed():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_a_doubled_first_does_not(number):
    process = subprocess.Popen([sys.executable, "-c", TWO_SIGNALS], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"first {int(number)}\n"
    process.send_signal(number)  # a launcher and a terminal pass on the same Ctrl-C
    time.sleep(1.1)
    assert process.poll() is None
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == f"second {int(number)}\n"
    assert process.returncode == 128 + number
