"""`forge-cli predict` end to end on a tiny random model: rows, files, resuming, base and adapter, what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from llmforge.config.load import load_recipe
from llmforge.config.names import METRICS
from llmforge.errors import RecipeError
from llmforge.eval.command import main
from llmforge.eval.predict import predict, predictions_dir, score_predictions
from llmforge.eval.predictions import read_predictions

QUESTIONS = [
    "The printer on floor 3 is jammed again.",
    "打印机卡纸了，请派人来修。",
    "Please reset my password.",
    "燕尾箭头表示水流方向。",
    "Reset.",
]
ANSWERS = [{"label": label} for label in ("hardware", "hardware", "account", "map", "account")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A test set of five rows, alpaca form, with JSON answers."""
    path = tmp_path_factory.mktemp("data") / "reports.json"
    rows = [{"instruction": q, "output": json.dumps(a)} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory) -> Path:
    """A LoRA adapter with random weights, large enough to change replies."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=64, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def words(tiny_model_dir, data, tmp_path) -> list[str]:
    return [
        f"model_name_or_path={tiny_model_dir}",
        "template=auto",
        f"eval_dataset={data}",
        "device=cpu",
        "do_sample=false",
        "max_new_tokens=6",
        "metrics=exact_match,json,bleu,rouge",
        f"output_dir={tmp_path / 'out'}",
    ]


def run(words: list[str], *more: str):
    return predict(load_recipe([*words, *more], "predict"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_gets_a_line_in_order_with_its_scores(words):
    result = run(words)
    rows = lines(result.path)
    assert [row["label"] for row in rows] == [json.dumps(a) for a in ANSWERS]
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(question in row["prompt"] for question, row in zip(QUESTIONS, rows, strict=True))
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert all({"exact_match", "json_valid", "bleu-4", "rouge-l"} <= row["scores"].keys() for row in rows)
    results = json.loads((result.path.parent / "predict_results.json").read_text(encoding="utf-8"))
    assert results["predict_rows"] == 5
    assert {
        "predict_bleu-4",
        "predict_rouge-1",
        "predict_rouge-2",
        "predict_rouge-l",
        "predict_exact_match",
    } <= results.keys()
    assert results["tables"]["fields"]["rows"][0][:2] == ["label", 5]
    assert (result.path.parent / "predict_recipe.yaml").is_file()


@pytest.mark.parametrize("draw", ["do_sample=false", "do_sample=true"])
def test_replies_do_not_depend_on_which_rows_run_together(words, tmp_path, draw):
    one = run(words, draw, "per_device_eval_batch_size=1", f"output_dir={tmp_path / 'one'}")
    four = run(words, draw, "per_device_eval_batch_size=4", f"output_dir={tmp_path / 'four'}")
    assert one.path.read_bytes() == four.path.read_bytes()


def test_an_interrupted_predict_ends_with_the_same_bytes(words):
    path = run(words).path
    whole = path.read_bytes()
    some = whole.splitlines(keepends=True)
    path.write_bytes(some[3] + some[1] + some[0][:20])
    run(words)
    assert path.read_bytes() == whole


def test_a_finished_predict_only_scores_again(words, capsys):
    run(words)
    result = run(words, "metrics=label", "label_field=label")
    assert "5 of 5 rows are predicted already" in capsys.readouterr().err
    assert result.scores["predict_label_accuracy"] == 0
    assert result.scores["predict_samples_per_second"] == 0
    assert result.tables["confusion"].columns == ["label", "account", "hardware", "map", "(other)", "(no label)"]


def test_other_settings_stop_before_anything_is_lost(words, adapter):
    path = run(words).path
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="max_new_tokens: 6 then, 3 now"):
        run(words, "max_new_tokens=3")
    with pytest.raises(RecipeError, match=r"adapters: \[\] then"):
        run(words, f"adapter_name_or_path={adapter}")
    assert path.read_bytes() == before
    run(words, "max_new_tokens=3", "overwrite_output_dir=true")
    assert path.read_bytes() != before


def test_the_base_is_predicted_when_the_adapter_is_left_empty(words, adapter, tmp_path):
    tuned_words = [*words, f"adapter_name_or_path={adapter}"]
    tuned = run(tuned_words, f"output_dir={tmp_path / 'tuned'}")
    base = run(tuned_words, "adapter_name_or_path=", f"output_dir={tmp_path / 'base'}")
    plain = run(words, f"output_dir={tmp_path / 'plain'}")
    replies = [[p.predict for p in read_predictions(result.path)] for result in (tuned, base, plain)]
    assert replies[1] == replies[2] != replies[0]


def test_a_prompt_longer_than_the_context_is_left_out_with_its_reason(words, tmp_path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"instruction": "word " * 600, "output": "a"}, {"instruction": "b", "output": "c"}]))
    result = run(words, f"eval_dataset={path}", "metrics=exact_match")
    assert [row["label"] for row in lines(result.path)] == ["c"]
    (source, reason), *others = result.left_out
    assert not others
    assert source.row == 1
    assert "512 tokens" in reason
    assert result.scores["predict_rows"] == result.scores["predict_rows_left_out"] == 1


def test_predictions_of_a_run_do_not_touch_its_files(words, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert predictions_dir(load_recipe([*words, f"output_dir={run_dir}"], "predict")) == run_dir
    (run_dir / "manifest.json").write_text("{}")
    assert predictions_dir(load_recipe([*words, f"output_dir={run_dir}"], "predict")) == run_dir / "predict"


def test_labels_that_cannot_be_scored_stop_before_anything_is_generated(words, tmp_path):
    with pytest.raises(RecipeError, match=r"no reference has a field 'lable'\. Did you mean 'label'\?"):
        run(words, "metrics=label", "label_field=lable")
    assert not (tmp_path / "out/generated_predictions.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_named(words, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"output_dir: .*file/out cannot be made: Not a directory"):
        run(words, f"output_dir={tmp_path / 'file/out'}")


def test_rows_without_a_reference_reply_are_predicted_and_not_scored(words, tmp_path):
    path = tmp_path / "open.json"
    path.write_text(json.dumps([{"instruction": "a", "output": ""}, {"instruction": "b", "output": "c"}]))
    result = run(words, f"eval_dataset={path}", "metrics=exact_match")
    assert [bool(row["scores"]) for row in lines(result.path)] == [False, True]
    assert result.scores["predict_rows"] == 2
    assert result.notes == ["1 of 2 rows have no reference reply and are not scored"]


def test_the_command_prints_scores_as_json_or_as_a_table(words, capsys):
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["predict_rows"] == 5
    assert "5/5 rows predicted" in printed.err
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "exact_match_raw          0.0000" in table
    assert "generated_predictions.jsonl" in table


def test_terminated_it_ends_with_143_and_goes_on_later(words, capsys):
    def terminate(predictions, labels, options):
        if any(predictions):  # not yet when only the labels are checked
            os.kill(os.getpid(), signal.SIGTERM)
        return METRICS.get("exact_match")(predictions, labels, options)

    METRICS.add("terminate_in_a_test", terminate)
    assert main([*words, "metrics=terminate_in_a_test"]) == 143
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(words)
    assert "5 of 5 rows are predicted already" in capsys.readouterr().err


def test_a_file_of_predictions_can_be_scored_alone(words, tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"prompt": "", "predict": "a", "label": "a"}\n{"prompt": "", "predict": "b", "label": "a"}\n')
    result = score_predictions(path, load_recipe([*words, "metrics=exact_match"], "predict"))
    assert result.scores["predict_exact_match"] == 0.5
    assert (tmp_path / "predict_results.json").is_file()
