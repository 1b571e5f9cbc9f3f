"""Gates: bars read, metrics found, and a chain that ends where one is not reached."""

import json
from pathlib import Path

import pytest

from llmforge.chain.gate import Bar, metrics_of, pass_gate
from llmforge.errors import GateError, RecipeError


@pytest.fixture
def folder(tmp_path):
    log = [{"current_steps": 1, "loss": 2.0, "eval_loss": 3.0}, {"current_steps": 2, "loss": 1.5, "reward": 0.25}]
    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (tmp_path / "predict_results.json").write_text('{"predict_exact_match": 0.75, "bad": NaN, "tables": {"x": 1}}')
    return tmp_path


def test_the_last_numbers_of_the_log_and_the_results_count(folder):
    found = metrics_of(folder)
    assert (found["loss"], found["eval_loss"], found["reward"], found["predict_exact_match"]) == (1.5, 3.0, 0.25, 0.75)
    assert "tables" not in found
    assert metrics_of(Path("nowhere")) == {}


@pytest.mark.parametrize("said", [0.75, "0.75", ">= 0.75", ">0.7"])
def test_a_bar_is_a_number_or_a_sign_and_a_number(folder, said):
    assert len(pass_gate("gate", "eval", folder, (Bar.read("exact_match", said),))) == 1


def test_every_bar_that_is_missed_is_named_and_the_exit_code_is_3(folder):
    bars = (Bar.read("exact_match", 0.8), Bar.read("eval_loss", "<= 2"), Bar.read("reward", 0.2))
    with pytest.raises(GateError) as error:
        pass_gate("gate", "eval", folder, bars)
    assert error.value.exit_code == 3
    assert "exact_match of eval is 0.75, the bar is >= 0.8; eval_loss of eval is 3, the bar is <= 2" in str(error.value)
    assert "reward" not in str(error.value)


def test_a_metric_that_is_no_number_passes_no_bar(folder):
    with pytest.raises(GateError, match="bad of eval is nan"):
        pass_gate("gate", "eval", folder, (Bar.read("bad", "<= 5"),))


def test_a_metric_that_is_not_there_is_an_error_with_the_nearest(folder):
    with pytest.raises(RecipeError, match=r"eval has no metric 'rewards'\. Did you mean 'reward'\? Known: "):
        pass_gate("gate", "eval", folder, (Bar.read("rewards", 1),))


@pytest.mark.parametrize("said", ["high", True, None, "== 3", "<="])
def test_what_is_no_bar_is_refused(said):
    with pytest.raises(RecipeError, match="expected a number or a bar"):
        Bar.read("accuracy", said)


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "kl", "eval_perplexity"])
def test_a_bare_number_for_what_should_be_low_is_refused(metric):
    with pytest.raises(RecipeError, match="less of it is better"):
        Bar.read(metric, 1.0)
