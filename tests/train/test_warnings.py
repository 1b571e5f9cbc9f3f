"""What a run says when something is odd: alarms, full memory, trackers that fail, labels of the first row."""

from __future__ import annotations

import io

import pytest
import torch

from llmforge.config.load import load_recipe
from llmforge.data.example import IGNORE, Encoded
from llmforge.data.marked import show_labels
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.train.alarms import FLAT_LINES, Alarms
from llmforge.train.arguments import deepspeed_config, training_arguments
from llmforge.train.console import Console, bar, clock
from llmforge.train.launch import num_ranks
from llmforge.train.memory import is_out_of_memory, out_of_memory
from llmforge.train.trackers import GuardedTracker


def test_a_norm_ten_times_its_median_is_an_alarm():
    alarms = Alarms()
    assert [alarms.norm(step, 1.0) for step in range(10)] == [None] * 10
    assert alarms.norm(10, 9.9) is None
    assert "11 times its running median" in alarms.norm(11, 11.0)


def test_a_flat_loss_is_told_once_and_a_falling_one_never():
    flat, falling = Alarms(), Alarms()
    said = [flat.loss(step, 2.0 + 0.001 * (step % 2)) for step in range(3 * FLAT_LINES)]
    assert sum(text is not None for text in said) == 1
    assert "the loss stays at 2" in said[FLAT_LINES - 1]
    assert not any(falling.loss(step, 2.0 * 0.99**step) for step in range(100))
    assert "the loss is nan" in falling.loss(101, float("nan"))


def test_full_memory_ends_in_numbered_changes(words):
    recipe = load_recipe(words(finetuning_type="full", per_device_train_batch_size=6), "train")
    text = str(out_of_memory(recipe, "train", 240))
    assert text.startswith("train: the machine's memory is full")
    assert "1. per_device_train_batch_size: 3 and gradient_accumulation_steps: 4 (now 6 and 2" in text
    assert "2. gradient_checkpointing: true" in text
    assert "3. cutoff_len: 120" in text
    assert "4. finetuning_type: lora" in text


def test_allocator_errors_are_told_from_others():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value)


def test_running_out_of_memory_fails_the_run_with_the_changes(words, train, tmp_path, monkeypatch):
    from llmforge.errors import RunError
    from llmforge.runs import RunDir
    from llmforge.train.stages.sft import SftStage

    monkeypatch.setattr(SftStage, "loss", lambda *_: torch.empty(1 << 60))
    with pytest.raises(RunError, match=r"1\. per_device_train_batch_size: 1 "):
        train()
    assert RunDir(tmp_path / "run").read_state().state == "failed"


class Failing:
    def on_log(self, *args, **kwargs):
        raise ConnectionError("no network")


def test_a_tracker_that_fails_is_switched_off_and_said_once():
    said = []
    tracker = GuardedTracker("wandb", Failing(), said.append)
    for _ in range(3):
        tracker.on_log(None, None, None, logs={})
    assert said == ["tracker wandb failed and is switched off: ConnectionError: no network"]


def test_trained_tokens_are_marked(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    prompt, reply = tokenizer.ids("打印机"), tokenizer.ids("yes")
    end = tokenizer.control("<|im_end|>")
    row = Encoded([*prompt, *reply, end], [*[IGNORE] * len(prompt), *reply, end])
    assert show_labels(tokenizer, row, colour=False) == "打印机⟦yes<|im_end|>⟧"
    assert "\x1b[32myes<|im_end|>\x1b[0m" in show_labels(tokenizer, row, colour=True)
    moved = Encoded([*prompt, end], [*[IGNORE] * len(prompt), tokenizer.control("<|im_start|>")])
    assert show_labels(tokenizer, moved, colour=False) == "打印机⟦<|im_end|>→<|im_start|>⟧"


def test_without_a_terminal_progress_is_plain_lines():
    out = io.StringIO()
    console = Console(out)
    for step in range(5):
        console.live(f"step {step}")
    console.live("step 5", last=True)
    assert out.getvalue() == "step 0\nstep 5\n"
    assert bar(1, 2).count("#") == 12
    assert [clock(7), clock(754), clock(3723)] == ["0:07", "12:34", "1:02:03"]


def test_keys_of_the_recipe_reach_training_arguments(words):
    recipe = load_recipe(words(optim="adafactor", lr_scheduler_type="cosine", warmup_ratio=0.1, seed=7), "train")
    args, notices = training_arguments(recipe)
    assert notices == []
    assert (str(args.optim.value), args.warmup_steps, args.seed, args.gradient_accumulation_steps) == (
        "adafactor",
        0.1,
        7,
        1,
    )
    assert not args.bf16
    assert args.device == torch.device("cpu")


def test_an_optimizer_that_does_not_exist_is_named(words):
    with pytest.raises(RecipeError, match="adamw_tarch"):
        training_arguments(load_recipe(words(optim="adamw_tarch"), "train"))


def test_deepspeed_leaves_batch_sizes_to_the_recipe(tmp_path):
    assert deepspeed_config({"gradient_accumulation_steps": 8})["gradient_accumulation_steps"] == "auto"
    path = tmp_path / "z.json"
    path.write_text("[1")
    with pytest.raises(RecipeError, match=r"z\.json is not valid JSON"):
        deepspeed_config(str(path))


def test_ranks_are_as_asked_or_one_per_card(words):
    assert num_ranks(load_recipe(words(), "train")) == 1
    assert num_ranks(load_recipe([*words(), "launch.nproc=3"], "train")) == 3
    with pytest.raises(RecipeError, match="nproc"):
        num_ranks(load_recipe([*words(), "launch.nproc=many"], "train"))
    with pytest.raises(RecipeError, match=r"99 ranks on .* CPU cores; at most"):
        num_ranks(load_recipe([*words(), "launch.nproc=99"], "train"))


def test_a_best_metric_nobody_measures_is_named(words, train):
    options = {"val_size": 2, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 1}
    with pytest.raises(RecipeError, match=r"'eval_rouge' is not measured.* Measured: .*loss"):
        train(metric_for_best_model="eval_rouge", load_best_model_at_end=True, **options)
