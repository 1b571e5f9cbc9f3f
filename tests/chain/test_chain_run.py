"""Chains and sweeps at work on the tiny model: links that are done stay, changed ones run again, begun ones go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmforge.chain.record import NAME, Record, difference
from llmforge.cli import main
from llmforge.runs import RunDir, read_manifest

TWO = """\
chain:
  sft: {stage: sft, dataset: rows.json}
  gate: {bars: {train_loss: <= 100}}
  export: {}
"""


def states(capsys) -> dict[str, str]:
    """Link -> result, from the table on stdout."""
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("link "))
    return {line.split()[0]: line.split()[2] for line in lines[head + 1 :]}


def test_a_rerun_does_only_what_changed(write, tiny_model_dir, capfd):
    words = ["train", *write(TWO, tiny_model_dir)]
    assert main(words) == 0
    assert states(capfd) == {"sft": "done", "gate": "done", "export": "done"}
    assert read_manifest(Path("out/export"))["base_model"] == str(tiny_model_dir)
    assert RunDir(Path("out")).read_state().state == "finished"
    assert main(words) == 0
    assert states(capfd) == {"sft": "skipped", "gate": "done", "export": "skipped"}
    # A gate that is not passed keeps what comes behind it from running.
    assert main([*words, "chain.gate.bars={train_loss: <= 0.1}"]) == 3
    said = capfd.readouterr().err
    assert "link gate: train_loss of sft is" in said
    assert "link export" not in said
    Path("out/export/model.safetensors").unlink()
    assert main(words) == 0
    assert states(capfd) == {"sft": "skipped", "gate": "done", "export": "done"}


def test_a_link_that_fails_ends_the_chain_with_its_code_and_name(write, tiny_model_dir, capfd):
    links = "chain:\n  a: {dataset: rows.json, nan_policy: stop, learning_rate: 1e30, max_steps: 4}\n  export: {}\n"
    assert main(["train", *write(links, tiny_model_dir)]) == 1
    said = capfd.readouterr()
    assert "link a failed with exit code 1; the same command goes on with it (out/a)" in said.err
    assert "link export" not in said.err
    assert json.loads(Path("out", NAME).read_text())["links"]["a"]["state"] == "failed"
    assert RunDir(Path("out")).read_state().state == "failed"


def test_a_folder_that_a_chain_has_not_made_is_left_alone(write, capfd):
    words = write(TWO)
    Path("out/sft").mkdir(parents=True)
    Path("out/sft/notes.txt").write_text("mine")
    assert main(["train", *words]) == 2
    assert "link sft: out/sft holds files that this chain has not made" in capfd.readouterr().err
    assert Path("out/sft/notes.txt").read_text() == "mine"


def test_two_chains_do_not_share_a_folder(write, capfd):
    words = write(TWO)
    with RunDir(Path("out").absolute()).lock() if Path("out").mkdir() is None else None:
        Path("out/run.lock").write_text(Path("out/run.lock").read_text().replace(str(os.getpid()), str(os.getppid())))
        lock = json.loads(Path("out/run.lock").read_text())
        Path("out/run.lock").write_text(json.dumps({**lock, "process_start": None}))
        assert main(["train", *words]) == 1
    assert "out is in use by process" in capfd.readouterr().err


def test_the_record_tells_what_changed_and_what_is_gone(tmp_path):
    record, folder = Record.open(tmp_path), tmp_path / "a"
    folder.mkdir()
    assert record.verdict("a", folder, {"seed": "1"}).action == "new"
    record.set("a", inputs={"seed": "1", "data.json": "f" * 64}, state="running", made={})
    inputs = {"seed": "1", "data.json": "f" * 64}
    assert (record.verdict("a", folder, inputs).action, record.verdict("a", folder, inputs).reason) == (
        "resume",
        "it was running",
    )
    record.set("a", state="done")
    assert Record.open(tmp_path).verdict("a", folder, inputs).action == "skip"
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    assert "is not in" in record.verdict("a", folder, inputs).reason
    assert difference(inputs, {**inputs, "seed": "2"}) == "seed was 1 and is 2"
    assert difference(inputs, {**inputs, "data.json": "0" * 64}) == "data.json has changed"
    assert difference(inputs, {**inputs, "template": "x"}) == "template is new"
    assert difference(inputs, {"seed": "1"}) == "data.json is gone"


@pytest.mark.slow
def test_pretraining_sft_reward_model_ppo_evaluation_gate_and_export_run_in_one_command(write, tiny_model_dir, capfd):
    links = """\
chain:
  pt: {stage: pt, dataset: corpus.txt}
  sft: {stage: sft, dataset: rows.json}
  rm: {stage: rm, dataset: pairs}
  ppo: {stage: ppo, dataset: rows.json, max_samples: 8, max_new_tokens: 4}
  eval: {eval_dataset: rows.json, max_samples: 4, max_new_tokens: 4, metrics: [exact_match]}
  gate: {bars: {exact_match: 0.0}}
  export: {}
"""
    words = ["train", *write(links, tiny_model_dir)]
    assert main(words) == 0
    assert set(states(capfd).values()) == {"done"}
    manifests = {name: read_manifest(Path("out", name)) for name in ("sft", "rm", "ppo", "export")}
    parents = {name: made["adapters" if name == "export" else "parents"] for name, made in manifests.items()}
    for name, parent in (("sft", "pt"), ("rm", "sft"), ("ppo", "sft"), ("export", "ppo")):
        assert f"out/{parent}" in json.dumps(parents[name]), (name, parents[name])
    assert Path("out/rm/value_head.safetensors").is_file()
    assert "exact_match" in Path("out/eval/predict_results.json").read_text()
    # New pairs: the reward model and what follows it run again, what came before stays.
    pairs = json.loads(Path("pairs.json").read_text())
    Path("pairs.json").write_text(json.dumps(pairs[:6]))
    assert main(words) == 0
    done = states(capfd)
    assert (done["pt"], done["sft"], done["rm"], done["ppo"]) == ("skipped", "skipped", "done", "done")


@pytest.mark.slow
def test_a_stopped_link_goes_on_from_its_checkpoint(write, tiny_model_dir, capfd):
    links = "chain:\n  sft: {dataset: rows.json, max_steps: 40, save_strategy: steps, save_steps: 5}\n  export: {}\n"
    words = [sys.executable, "-m", "llmforge.cli", "train", *write(links, tiny_model_dir)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not list(Path("out/sft").glob("checkpoint-*")) and time.monotonic() < until:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 143, said
    assert "link sft was stopped" in said
    assert RunDir(Path("out")).read_state().state == "stopped"
    stopped_at = RunDir(Path("out/sft")).read_state().step
    assert 0 < stopped_at < 40
    assert main(words[3:]) == 0
    told = capfd.readouterr()
    assert "link sft: goes on (it was stopped)" in told.err
    assert json.loads(Path("out/sft/train_results.json").read_text())["steps"] == 40
    log = [json.loads(line)["current_steps"] for line in Path("out/sft/trainer_log.jsonl").read_text().splitlines()]
    assert log == list(range(1, 41))  # every step once


@pytest.mark.slow
def test_a_sweep_prints_one_table_sorted_by_the_loss_on_held_out_rows(write, tiny_model_dir, capfd):
    recipe = "dataset: rows.json\nval_size: 4\neval_strategy: steps\neval_steps: 1\nmax_steps: 4\n"
    words = write(recipe + "sweep: {learning_rate: [1.0e-5, 1.0e-2, 1.0e-3]}\n", tiny_model_dir)
    path = Path(words[0])
    path.write_text(path.read_text().replace("max_steps: 1\n", ""))
    assert main(["train", *words, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [row["learning_rate"] for row in rows] == [1e-2, 1e-3, 1e-5]
    losses = [row["eval_loss"] for row in rows]
    assert losses == sorted(losses)
    assert losses[0] < losses[2]
    assert {row["state"] for row in rows} == {"done"}
