import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmforge.config.schema import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    FinetuneConfig,
    GenerateConfig,
    LaunchConfig,
    ModelConfig,
    Recipe,
    ServeConfig,
    TrainConfig,
)
from llmforge.data.build import build_data
from llmforge.data.example import IGNORE, Message
from llmforge.data.prompts import build_prompts
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.runs import sha256_file


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def template(tokenizer):
    return get_template("chatml", tokenizer, default_system="")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))


def recipe(folder, stage="sft", seed=42, **data):
    groups = (GenerateConfig(), EvalConfig(), ServeConfig(), ExportConfig(), LaunchConfig())
    data = DataConfig(**{"dataset_dir": str(folder), **data})
    return Recipe(ModelConfig(), data, FinetuneConfig(stage=stage), TrainConfig(seed=seed), *groups)


def save(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def qa(prefix, count):
    return [{"instruction": f"{prefix}{i}", "output": f"a{i}"} for i in range(count)]


def first_words(examples):
    return [example.messages[0].content for example in examples]


def test_a_recipe_becomes_rows_reports_and_hashes(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", [*qa("x", 3), {"instruction": "q", "output": ""}])
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "a.jsonl"}}')
    data = build_data(recipe(tmp_path, dataset=["mine"]), tokenizer, template)
    assert first_words(data.train_examples) == ["x0", "x1", "x2"]
    assert data.train[0] == template.encode(tokenizer, data.train_examples[0].messages)
    assert data.evals == {}
    assert data.hashes == {str(tmp_path / "a.jsonl"): sha256_file(tmp_path / "a.jsonl")}
    assert [(r.name, r.rows_in, r.rows_out) for r in data.reports] == [("read mine", 4, 3), ("encode train", 3, 3)]
    report = json.loads(json.dumps(data.as_dict()))
    assert report["rows"] == {"train": 3}
    assert report["steps"][0]["rejected"] == [
        {"file": str(tmp_path / "a.jsonl"), "row": 4, "reason": "the reply is empty"}
    ]
    assert report["mixture"][0]["dataset"] == "mine"
    assert list(report["files"]) == [str(tmp_path / "a.jsonl")]


def test_val_size_and_eval_dataset_are_evaluated_under_their_names(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", qa("x", 10))
    save(tmp_path, "test.jsonl", [*qa("t", 2), *qa("x", 10)])
    data = build_data(
        recipe(tmp_path, dataset=["a.jsonl"], eval_dataset=["test.jsonl", "test.jsonl"], val_size=0.2),
        tokenizer,
        template,
    )
    assert {name: len(rows) for name, rows in data.evals.items()} == {"validation": 2, "test": 12, "test_2": 12}
    held = set(first_words(data.eval_examples["validation"]))
    assert not held & set(first_words(data.train_examples))
    assert len(data.train) == 8
    assert "test: 8 of 12 rows have a prompt that is also learned" in data.notes


def test_the_seed_decides_what_is_held_out(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", qa("x", 40))
    held = [
        first_words(
            build_data(recipe(tmp_path, seed=s, dataset=["a.jsonl"], val_size=8), tokenizer, template).eval_examples[
                "validation"
            ]
        )
        for s in (1, 1, 2)
    ]
    assert held[0] == held[1] != held[2]


def test_val_group_by_keeps_a_person_on_one_side(tmp_path, tokenizer, template):
    rows = [{**row, "person": i % 5} for i, row in enumerate(qa("x", 20))]
    save(tmp_path, "a.jsonl", rows)
    data = build_data(recipe(tmp_path, dataset=["a.jsonl"], val_size=8, val_group_by="person"), tokenizer, template)
    held = {example.group for example in data.eval_examples["validation"]}
    assert len(held) == 2
    assert held.isdisjoint(example.group for example in data.train_examples)


def test_held_out_rows_leave_before_data_sets_are_mixed(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", qa("x", 6))
    save(tmp_path, "b.jsonl", qa("y", 30))
    data = build_data(
        recipe(tmp_path, dataset=["a.jsonl", "b.jsonl"], val_size=6, mix_strategy="interleave_over"),
        tokenizer,
        template,
    )
    learned = first_words(data.train_examples)
    assert len(set(learned)) == 30  # every row that is not held out, the shorter data set's more than once
    assert set(learned).isdisjoint(first_words(data.eval_examples["validation"]))
    assert [word[0] for word in learned[:4]] == ["x", "y", "x", "y"]
    assert [share.dataset for share in data.mixture] == ["a", "b"]
    assert sum(share.share for share in data.mixture) == pytest.approx(1)
    assert sum(share.available for share in data.mixture) == 30
    assert any(note.split()[:1] == ["b"] for note in data.notes)
    assert any("interleave_over" in note for note in data.notes)


def test_an_inline_entry_and_max_samples(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", [{"frage": f"q{i}", "antwort": "a"} for i in range(5)])
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "frage", "response": "antwort"}}
    data = build_data(recipe(tmp_path, dataset=[entry], max_samples=2), tokenizer, template)
    assert first_words(data.train_examples) == ["q0", "q1"]


def test_no_data_set_and_no_usable_row_are_one_message_with_counts(tmp_path, tokenizer, template):
    with pytest.raises(RecipeError, match="dataset: nothing is given to learn from"):
        build_data(recipe(tmp_path), tokenizer, template)
    rows = [{"instruction": "q", "output": ""}] * 3 + [{"instruction": "", "output": "a"}]
    save(tmp_path, "a.jsonl", rows)
    with pytest.raises(RecipeError, match=r"(?s)'a'.*has no usable row:\n  3 x the reply is empty\n  1 x a user turn"):
        build_data(recipe(tmp_path, dataset=["a.jsonl"]), tokenizer, template)
    save(tmp_path, "b.jsonl", [])
    with pytest.raises(RecipeError, match="has no usable row: it holds no rows"):
        build_data(recipe(tmp_path, dataset=["b.jsonl"]), tokenizer, template)
    save(tmp_path, "c.jsonl", qa("word " * 9, 4))
    with pytest.raises(RecipeError, match=r"no row is left to use for train:\n  4 x longer than cutoff_len 8"):
        build_data(recipe(tmp_path, dataset=["c.jsonl"], cutoff_len=8, truncation="drop"), tokenizer, template)
    outputs = [None, 3, True, {"a": float("nan")}]
    rows = [{"instruction": "q", "output": output} for output in outputs]
    save(tmp_path, "d.jsonl", [*rows, [], "text", {"instruction": 5, "output": "a"}])
    with pytest.raises(RecipeError, match="and 2 other reasons"):
        build_data(recipe(tmp_path, dataset=["d.jsonl"]), tokenizer, template)


def test_keys_without_effect_are_said(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", qa("x", 2))
    told = recipe(tmp_path, dataset=["a.jsonl"], streaming=True, preprocessing_num_workers=16)
    notes = build_data(told, tokenizer, template).notes
    assert [note.split(":")[0] for note in notes[:2]] == ["streaming", "preprocessing_num_workers"]


def test_plain_text_is_joined_at_stage_pt(tmp_path, tokenizer, template):
    (tmp_path / "a.txt").write_text("one two\nthree\n")
    data = build_data(recipe(tmp_path, "pt", dataset=["a.txt"], cutoff_len=6), tokenizer, template)
    flat = [i for text in ("one two", "three") for i in [*tokenizer.ids(text), tokenizer.eos_id]]
    assert [i for row in data.train for i in row.input_ids] == flat
    assert data.train[0].labels[0] == IGNORE


def test_a_large_set_is_found_again(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", qa("x", 2100))
    first, again = (build_data(recipe(tmp_path, dataset=["a.jsonl"]), tokenizer, template) for _ in range(2))
    assert first.train.input_ids.tolist() == again.train.input_ids.tolist()
    assert len([p for p in (tmp_path / "home" / "encoded").iterdir() if p.is_dir()]) == 1


# ---- prompts


def test_prompts_are_the_training_rows_up_to_the_reply(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", [*qa("x", 2), {"instruction": "open", "output": None}])
    prompts, reports = build_prompts(recipe(tmp_path, eval_dataset=["a.jsonl"]), tokenizer, template)
    train = build_data(recipe(tmp_path, dataset=["a.jsonl"]), tokenizer, template).train
    for prompt, row in zip(prompts, train, strict=False):
        assert row.input_ids[: len(prompt.prompt_ids)] == prompt.prompt_ids
        assert row.labels[len(prompt.prompt_ids)] != IGNORE
        assert row.labels[len(prompt.prompt_ids) - 1] == IGNORE
    assert [(p.row, p.label, p.dataset, p.source.row) for p in prompts] == [
        (0, "a0", "a", 1),
        (1, "a1", "a", 2),
        (2, "", "a", 3),
    ]
    assert prompts[0].messages == (Message("user", "x0"),)
    assert prompts[0].prompt_text == "<|im_start|>user\nx0<|im_end|>\n<|im_start|>assistant\n"
    assert [(r.rows_in, r.rows_out) for r in reports] == [(3, 3), (3, 3)]


def test_a_call_is_labelled_as_the_template_writes_it(tmp_path, tokenizer, template):
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}]
    save(tmp_path, "a.jsonl", [{"messages": [{"role": "user", "content": "q"}, *call]}])
    qwen = replace(template, tool_syntax="qwen")
    (prompt,), _ = build_prompts(recipe(tmp_path, eval_dataset=["a.jsonl"]), tokenizer, qwen)
    assert '{"name": "f", "arguments": {"x": 1}}' in prompt.label
    assert "<|im_end|>" not in prompt.label


def test_without_eval_dataset_the_held_out_rows_are_answered(tmp_path, tokenizer, template):
    save(tmp_path, "a.jsonl", qa("x", 10))
    told = recipe(tmp_path, dataset=["a.jsonl"], val_size=3)
    prompts, _ = build_prompts(told, tokenizer, template)
    held = build_data(told, tokenizer, template).eval_examples["validation"]
    assert [p.messages[0].content for p in prompts] == first_words(held)


def test_nothing_to_answer_is_an_error(tmp_path, tokenizer, template):
    with pytest.raises(RecipeError, match="eval_dataset: nothing is given to predict on"):
        build_prompts(recipe(tmp_path, dataset=["a.jsonl"]), tokenizer, template)
    tools = json.dumps([{"name": "f"}])
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    save(tmp_path, "a.jsonl", [{"messages": talk, "tools": tools}])
    with pytest.raises(RecipeError, match=r"eval_dataset: no row can be made a prompt: .*tools"):
        build_prompts(recipe(tmp_path, eval_dataset=["a.jsonl"]), tokenizer, replace(template, tool_syntax=None))


def test_building_imports_neither_torch_nor_datasets_nor_pandas():
    code = (
        "import sys, llmforge.data.build, llmforge.data.prompts, llmforge.data.plan\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


SHARED = Path(__file__).parents[2] / "../shared"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_real_rows_fit_a_real_tokenizer():
    tokenizer = load_tokenizer(SHARED / "tokenizers/qwen2_5")
    template = get_template("qwen", tokenizer)
    told = recipe(
        SHARED / "data/llamafactory",
        dataset=["glaive_toolcall_zh_demo", "alpaca_zh_demo"],
        max_samples=100,
        cutoff_len=256,
        truncation="split",
        val_size=0.1,
    )
    data = build_data(told, tokenizer, template)
    assert sum(report.rows_out for report in data.reports if report.name.startswith("read")) == 200
    assert data.train.lengths.max() <= 256
    learned = data.train.labels != IGNORE
    assert (data.train.labels[learned] == data.train.input_ids[learned]).all()
