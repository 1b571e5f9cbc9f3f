"""The form of Fine-tune: it and the recipe's text are one thing, and the schema alone says what is right."""

import json

import pytest
import yaml

from llmforge.config.keys import keys, keys_of
from llmforge.webui import form
from llmforge.webui.board import Board
from llmforge.webui.checking import check_text
from llmforge.webui.words import Words


@pytest.fixture
def board(tmp_path, tiny_tokenizer_dir, monkeypatch) -> Board:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"instruction": f"Floor {n}?", "output": f"{n}."}) + "\n" for n in range(30))
    )
    monkeypatch.chdir(tmp_path)
    return Board(tmp_path)


@pytest.fixture
def given(tiny_tokenizer_dir) -> form.Given:
    start = {"model_name_or_path": str(tiny_tokenizer_dir), "dataset": ["rows.jsonl"], "template": "chatml"}
    return form.preset(start, "standard")


@pytest.mark.parametrize("name", form.PRESETS)
def test_every_preset_is_a_recipe_that_runs(board, given, name):
    found = check_text(board, form.preset(given, name))
    assert [wrong.message for wrong in found.problems] == []
    assert any("tokens a row" in line for line in found.fine)


def test_form_and_text_say_the_same():
    given = form.preset({"dataset": ["a"], "launch.nproc": 2, "lora_target": ["q_proj", "all"]}, "careful")
    assert form.from_yaml(form.to_yaml(given)) == (given, "")
    assert yaml.safe_load(form.to_yaml(given))["launch"] == {"nproc": 2}


def test_text_that_is_no_recipe_is_told_with_its_line():
    assert form.from_yaml("a: 1\nb: [")[1].startswith("line ")
    assert "twice" in form.from_yaml("seed: 1\nseed: 2\n")[1]


def test_what_is_typed_becomes_the_type_of_its_key_and_a_default_goes():
    given = form.with_value({}, "learning_rate", "1e-4")
    assert given == {"learning_rate": 1e-4}
    assert form.with_value(given, "learning_rate", "") == {}
    assert form.with_value({}, "weight_decay", "0") == {}
    assert form.with_value({}, "weight_decay", "0.1") == {"weight_decay": 0.1}
    assert form.with_value({}, "seed", "abc") == {"seed": "abc"}  # kept, so that the text shows what is wrong
    assert form.with_value({}, "lora_target", "q_proj, v_proj") == {"lora_target": ["q_proj", "v_proj"]}
    assert form.with_value({}, "use_dora", True) == {"use_dora": True}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", sorted(keys()))
def test_every_key_says_what_it_takes_and_takes_its_default(name, language):
    key, words = keys()[name], Words(language)
    assert form.expectation(words, key)
    shown = form.text_of(key.default)
    assert form.wrong(words, name, shown) is None, shown


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", "abc"), ("learning_rate", "-1"), ("num_train_epochs", "0"), ("val_size", "-0.1"),
     ("cutoff_len", "1.5"), ("lora_rank", "0"), ("max_samples", "x"), ("per_device_train_batch_size", "0"),
     ("stage", "stf"), ("seed", "4294967296")],
)  # fmt: skip
def test_bad_values_are_told_in_the_readers_language(name, value):
    told = form.wrong(Words("zh"), name, value)
    assert told
    assert told.startswith("输入了")
    assert form.wrong(Words("en"), name, value).startswith("Got ")


def test_a_search_finds_settings_by_name_first_and_by_what_they_are_for_in_both_languages():
    words = Words("zh")

    def found(search: str, group: str, stage: str) -> list[str]:
        return [key.name for key in form.advanced(words, search, group, stage)]

    assert found("warmup", "", "sft")[0] == "warmup_steps"
    assert "warmup_steps" in found("预热", "", "sft")
    assert "ppo_clip" in found("", "rl", "ppo")
    assert "ppo_clip" not in found("", "rl", "sft")
    assert not {*found("", "", "sft")} & {*form.FIELDS, "hf_hub_token", "output_dir"}
    assert {*found("", "", "sft")} < {k.name for g in keys_of("train").values() for k in g}


@pytest.mark.parametrize(
    ("change", "key", "fix"),
    [
        ({"lora_rnk": 16}, "lora_rnk", {"lora_rank": 16}),
        ({"learning_rate": "abc"}, "learning_rate", {}),
        ({"stage": "stf"}, "stage", {"stage": "sft"}),
        ({"bf16": True, "fp16": True}, "bf16", {"fp16": True}),
    ],
    ids=lambda value: str(value),
)
def test_a_problem_is_at_its_key_and_its_fix_leads_on(board, given, change, key, fix):
    broken = {**given, **change}
    found = check_text(board, broken)
    assert not found.runs
    wrong = next(wrong for wrong in found.problems if wrong.key == key)
    assert wrong.fixed is not None
    for name, value in fix.items():
        assert wrong.fixed[name] == value
    assert not [p for p in check_text(board, wrong.fixed).problems if p.key == key]


def test_what_a_run_was_made_of_comes_back_without_defaults():
    resolved = {"learning_rate": 1e-4, "weight_decay": 0.0, "output_dir": "runs/a", "seed": 7}
    assert form.without_defaults(resolved) == {"learning_rate": 1e-4, "seed": 7}
