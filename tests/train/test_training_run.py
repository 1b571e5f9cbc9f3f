"""A whole training run in this process: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from llmforge.errors import RecipeError, RunError
from llmforge.runs import RunDir, read_manifest

FILES = {
    "recipe.yaml", "manifest.json", "run.json", "run.lock", "trainer_log.jsonl", "training_loss.png",
    "train_results.json", "trainer_state.json", "data_report.json", "adapter_config.json",
    "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "checkpoint-6",
}  # fmt: skip


def test_a_run_writes_its_files_and_no_others(train, log_of, capsys):
    run = train(plot_loss=True, max_steps=6, save_steps=6, val_size=4, eval_strategy="steps", eval_steps=3)
    assert {path.name for path in run.iterdir()} == FILES
    modes = {path.stat().st_mode & 0o666 for path in run.rglob("*") if path.is_file()}
    assert modes == {run.stat().st_mode & 0o666}  # weights too: whoever serves them may be another user
    assert RunDir(run).read_state().state == "finished"

    lines = log_of(run)
    first = next(line for line in lines if "loss" in line)
    theirs = {"current_steps", "total_steps", "loss", "lr", "epoch", "percentage", "elapsed_time", "remaining_time"}
    assert set(first) == theirs | {"grad_norm", "tokens_per_second", "supervised_tokens", "step_ms"}
    evals = [line for line in lines if "eval_loss" in line]
    assert [line["current_steps"] for line in evals] == [3, 6]
    assert evals[0]["eval_perplexity"] == pytest.approx(math.exp(evals[0]["eval_loss"]))

    results = json.loads((run / "train_results.json").read_text())
    assert results["steps"] == 6
    assert results["train_loss"] > 0

    said = capsys.readouterr().err
    assert "trainable: 8,192 of 51,360 parameters (15.95 %)" in said  # 2 x 8 x (7 pairs of in + out) of two layers
    assert '⟦{"label": ' in said
    assert "train 6/6" in said
    assert "train: 6 steps of 4 rows (4 steps an epoch)" in said


def test_the_manifest_leads_back_to_base_and_template(train, tiny_model_dir, rows_file):
    run = train(max_steps=1, save_steps=1)
    manifest = read_manifest(run)
    assert manifest["base_model"] == str(tiny_model_dir)
    assert manifest["base_folder"] == str(tiny_model_dir.resolve())
    assert manifest["template"] == "chatml"
    assert manifest["finetuning_type"] == "lora"
    assert manifest["stage"] == "sft"
    assert len(manifest["base_files"]["model.safetensors"]["header_sha256"]) == 64
    assert list(manifest["data_files"]) == [str(rows_file)]
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] or manifest["versions"]["torch"]
    assert read_manifest(run / "checkpoint-1") == manifest


def test_a_folder_with_results_is_not_trained_over(train):
    run = train(max_steps=1)
    weights = (run / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match=r"resume_from_checkpoint=true[\s\S]*overwrite_output_dir=true"):
        train(max_steps=2)
    assert (run / "adapter_model.safetensors").read_bytes() == weights
    assert RunDir(run).read_state().state == "finished"
    train(max_steps=2, overwrite_output_dir=True)
    assert json.loads((run / "train_results.json").read_text())["steps"] == 2


def test_full_training_gives_a_folder_that_loads_as_a_model(train):
    from transformers import AutoModelForCausalLM

    run = train(finetuning_type="full", max_steps=2)
    model = AutoModelForCausalLM.from_pretrained(run)
    assert torch.equal(model.state_dict()["lm_head.weight"], load_file(run / "model.safetensors")["lm_head.weight"])
    assert (run / "tokenizer.json").is_file()


def test_the_loss_falls(train, log_of):
    losses = [line["loss"] for line in log_of(train(num_train_epochs=6, finetuning_type="full")) if "loss" in line]
    assert losses[-1] < losses[0] - 0.3


def test_nan_stops_the_run_and_says_so_in_run_json(train, tmp_path):
    with pytest.raises(RunError, match="nan_policy"):
        train(learning_rate=1e30, finetuning_type="full", max_grad_norm=0)
    state = RunDir(tmp_path / "run").read_state()
    assert state.state == "failed"
    assert "step" in state.error


def test_a_wrong_data_file_leaves_a_failed_run_with_its_error(train, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    with pytest.raises(RecipeError):
        train(dataset=bad)
    assert RunDir(tmp_path / "run").read_state().state == "failed"


def test_bf16_on_a_cpu_is_a_note_and_no_refusal(train, capsys):
    train(max_steps=1, bf16=True)
    assert "bf16: true has no effect" in capsys.readouterr().err


def test_the_best_checkpoint_becomes_the_result_and_stopping_is_early(train, log_of):
    # With this learning rate the weights only get worse on other rows after the first steps.
    run = train(
        num_train_epochs=40, learning_rate=0.3, lr_scheduler_type="constant", finetuning_type="full", val_size=4,
        eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True, early_stopping_steps=2,
        save_total_limit=1, compute_accuracy=True,
    )  # fmt: skip
    evals = [(line["eval_loss"], line["current_steps"]) for line in log_of(run) if "eval_loss" in line]
    best = min(evals)[1]
    assert evals[-1][1] == best + 4
    assert all("eval_accuracy" in line for line in log_of(run) if "eval_loss" in line)
    assert (run / f"checkpoint-{best}").is_dir()
    assert (run / "model.safetensors").read_bytes() == (run / f"checkpoint-{best}/model.safetensors").read_bytes()


def test_replies_are_generated_and_scored_during_evaluation(train, log_of):
    run = train(
        max_steps=1, val_size=2, eval_strategy="steps", eval_steps=1, predict_with_generate=True, max_new_tokens=4,
        metrics="exact_match",
    )  # fmt: skip
    line = next(line for line in log_of(run) if "eval_loss" in line)
    assert line["eval_exact_match"] == 0.0


def test_plain_texts_are_learned_whole_and_packed(train, log_of, tmp_path):
    texts = [{"text": f"The printer on floor {i} is jammed again. " * (1 + i % 3)} for i in range(8)]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(texts))
    run = train(stage="pt", dataset=path, max_steps=1, cutoff_len=64)
    assert log_of(run)[0]["supervised_tokens"] > 100


def test_loraplus_gives_b_its_own_learning_rate(train):
    run = train(max_steps=1, save_steps=1, loraplus_lr_ratio=16)
    groups = torch.load(run / "checkpoint-1/optimizer.pt", weights_only=True)["param_groups"]
    assert {round(group["initial_lr"], 6) for group in groups} == {0.001, 0.016}


def test_a_tracker_that_is_not_installed_is_named(train):
    with pytest.raises(RecipeError, match="report_to"):
        train(max_steps=1, report_to="comet_ml")
