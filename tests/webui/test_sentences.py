"""What other rooms say reaches a Chinese reader in Chinese: help of keys, the check, ends of runs."""

import json
import re
import string

import pytest

from llmforge.config.keys import keys_of
from llmforge.config.rules import RULES
from llmforge.webui import form
from llmforge.webui.board import Board
from llmforge.webui.checking import check_text
from llmforge.webui.sentences import in_words, sentences, show_sentence, translated
from llmforge.webui.waiting import KILLED
from llmforge.webui.words import Words, key_help

ZH, EN = Words("zh"), Words("en")


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_key_under_advanced_says_in_chinese_what_it_is_for():
    shown = {
        key.name
        for group in keys_of("train").values()
        for key in group
        if key.name not in (*form.FIELDS, *form.HIDDEN) and not key.rule.secret
    }
    assert key_help("zh").keys() == shown
    assert all(re.search("[\u4e00-\u9fff]", text) for text in key_help("zh").values())


def test_every_rule_that_a_training_recipe_may_break_is_in_chinese():
    said = {f"{rule.message}; {rule.fix}" for rule in RULES if not rule.commands or "train" in rule.commands}
    assert said - sentences("zh").keys() == set()


@pytest.mark.parametrize("sentence", sorted(sentences("zh")))
def test_a_translation_says_nothing_that_varies_which_the_sentence_does_not(sentence):
    assert fields(sentences("zh")[sentence]) <= set(re.findall(r"\{(\w+)\}", sentence))
    assert re.search("[\u4e00-\u9fff]", sentences("zh")[sentence])


@pytest.fixture
def found(tmp_path, tiny_tokenizer_dir, monkeypatch):
    """found({key: value}) -> what the check says of a recipe that is fine but for that."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"instruction": f"Floor {n}?", "output": "" if n == 3 else f"{n}."}) + "\n" for n in range(9)
        )
    )
    monkeypatch.chdir(tmp_path)
    start = {"model_name_or_path": str(tiny_tokenizer_dir), "dataset": ["rows.jsonl"], "template": "chatml"}
    return lambda change: check_text(Board(tmp_path), {**form.preset(start, "standard"), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": ["rwos.jsonl"]},
        {"dataset": ["nowhere"]},
        {"model_name_or_path": "./nothing"},
        {"model_name_or_path": "no model"},
        {"template": "chatmll"},
        {"stage": "dpo"},
        {"streaming": True},
        {"bf16": True, "fp16": True},
        {"lora_rnk": 16},
        {"weight_decay": "much"},
        {"deepspeed": "z9.json"},
        {"finetuning_type": "full", "quantization_bit": 4},
        {"seed": "x"},
    ],
    ids=str,
)
def test_the_checks_problems_are_said_in_chinese(found, change):
    checked = found(change)
    assert checked.problems
    for wrong in checked.problems:
        told = translated(ZH, wrong.message)
        assert told, wrong.message
        assert not re.search(r"\b(the|is|not|expected|folder|Did you mean)\b", told), told


def test_what_the_check_found_fine_or_worth_a_look_is_said_in_chinese(found):
    checked = found({"cutoff_len": 20, "finetuning_type": "full", "lora_alpha": 8, "val_group_by": None})
    assert checked.problems == []
    assert len(checked.fine) == 4
    assert len(checked.remarks) >= 3
    for line in [*checked.fine, *checked.remarks]:
        assert translated(ZH, line), line


def test_a_place_and_a_near_name_are_said_too():
    told = in_words(ZH, "recipe line 3: lora_rnk: no such key. Did you mean 'lora_rank'?")
    assert told == "第 3 行：没有 lora_rnk 这个设置。是不是 lora_rank？"


def test_how_a_run_ended_is_said_in_chinese():
    assert translated(ZH, KILLED)
    assert "SIGKILL" in in_words(
        ZH, "the process was ended by SIGKILL; the system does that when memory runs out"
    )  # fmt: skip


def test_a_sentence_nobody_knows_stays_and_is_marked_as_english():
    assert translated(ZH, "a <b>new</b> sentence") is None
    assert show_sentence(ZH, "a <b>new</b> sentence") == '<span lang="en">a &lt;b&gt;new&lt;/b&gt; sentence</span>'
    assert show_sentence(EN, "a <b>new</b> sentence") == "a &lt;b&gt;new&lt;/b&gt; sentence"
