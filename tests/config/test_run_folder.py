"""A run folder, a checkpoint or an adapter where a recipe may stand."""

import json
from pathlib import Path

import pytest

from llmforge.config.load import dump_recipe, load_recipe


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base/model/x").mkdir(parents=True)
    Path("base/model/x/config.json").write_text("{}")
    return tmp_path


def make_run(name: str, *words: str, manifest: dict | None = None) -> Path:
    """A run folder as training leaves it, without weights."""
    recipe = load_recipe(
        [f"output_dir={name}", "dataset=demo", "model_name_or_path=base/model/x", "template=qwen", *words], "train"
    )
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    (folder / "manifest.json").write_text(json.dumps(manifest or {}))
    if recipe.finetune.finetuning_type in ("lora", "peft"):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "hub/base"}))
    else:
        (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("command", ["predict", "chat", "api", "export"])
def test_a_lora_run_is_its_base_with_its_adapter(runs, command):
    make_run("runs/a")
    recipe = load_recipe(["runs/a"], command)
    assert recipe.model.model_name_or_path == str(runs / "base/model/x")
    assert recipe.model.adapter_name_or_path == ["runs/a"]
    assert recipe.data.template == "qwen"
    assert (recipe.run_dir, recipe.train.output_dir) == ("runs/a", "runs/a")
    assert recipe.origins["adapter_name_or_path"].text == "run runs/a"


def test_a_full_run_is_a_model(runs):
    make_run("runs/a", "finetuning_type=full")
    recipe = load_recipe(["runs/a"], "chat")
    assert (recipe.model.model_name_or_path, recipe.model.adapter_name_or_path) == ("runs/a", [])


def test_training_a_run_again_takes_its_recipe_as_it_was(runs):
    make_run("runs/a", "overwrite_output_dir=true")
    recipe = load_recipe(["runs/a", "resume_from_checkpoint=true"], "train")
    assert recipe.model.adapter_name_or_path == []
    assert recipe.train.output_dir == "runs/a"
    assert recipe.train.overwrite_output_dir is False


@pytest.mark.parametrize("words", [[], ["finetuning_type=full"], ["stage=dpo"], ["stage=ppo", "reward_funcs=ended"]])
def test_a_runs_own_recipe_holds_every_key_and_draws_no_notes(runs, words):
    make_run("runs/a", *words)
    for command in ("train", "predict", "chat", "export"):
        assert load_recipe(["runs/a"], command).notes == ()
    notes = load_recipe(["runs/a", "mix_temperature=3", "pref_ftx=0.1"], "train").notes
    assert any(note.startswith("command line: mix_temperature: no effect") for note in notes)
    assert any("pref_ftx: only for stage dpo" in note for note in notes) == (words != ["stage=dpo"])


def test_a_checkpoint_inside_a_run_gives_its_own_weights(runs):
    folder = make_run("runs/a") / "checkpoint-5"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    recipe = load_recipe(["runs/a/checkpoint-5"], "chat")
    assert recipe.model.adapter_name_or_path == ["runs/a/checkpoint-5"]
    assert recipe.data.template == "qwen"


@pytest.mark.parametrize(
    ("new", "adapters"),
    [("true", ["first", "second", "runs/c"]), ("false", ["first", "runs/c"])],
    ids=["a new adapter comes on top", "a continued adapter replaces the one it continues"],
)
def test_adapters_below_a_run_stay_below(runs, new, adapters):
    for name in ("first", "second"):
        Path(name).mkdir()
    make_run("runs/c", "adapter_name_or_path=first,second", f"create_new_adapter={new}")
    recipe = load_recipe(["runs/c"], "chat")
    assert [Path(name).name for name in recipe.model.adapter_name_or_path] == [Path(name).name for name in adapters]


def test_the_command_line_wins_over_the_run(runs):
    make_run("runs/a")
    recipe = load_recipe(["runs/a", "adapter_name_or_path=other/adapter", "template=auto"], "chat")
    assert recipe.model.adapter_name_or_path == ["other/adapter"]
    assert recipe.data.template == "auto"


def test_a_moved_run_still_works(runs, monkeypatch):
    Path("gone.jsonl").write_text("{}")
    make_run("runs/a", "dataset=gone.jsonl")
    Path("gone.jsonl").unlink()
    Path("elsewhere").mkdir()
    Path("runs/a").rename("elsewhere/b")
    monkeypatch.chdir("elsewhere")
    recipe = load_recipe(["b"], "api")
    assert recipe.model.adapter_name_or_path == ["b"]
    assert recipe.train.output_dir == "b"


@pytest.mark.parametrize("words", [["adapter_name_or_path=runs/a"], ["runs/alone"]])
def test_an_adapter_alone_finds_base_and_template_in_its_manifest(runs, words):
    make_run("runs/a", manifest={"base_model": "some/base", "template": "llama3"})
    make_run("runs/alone", manifest={"base_model": "some/base", "template": "llama3"})
    Path("runs/alone/recipe.yaml").unlink()
    recipe = load_recipe(words, "chat")
    assert (recipe.model.model_name_or_path, recipe.data.template) == ("some/base", "llama3")
    assert recipe.origins["model_name_or_path"].text.startswith("manifest of runs/a")


def test_a_base_that_moved_is_found_by_its_folder(runs):
    make_run("runs/a", manifest={"base_model": "./was/here/x", "base_folder": str(runs / "base/model/x")})
    assert load_recipe(["adapter_name_or_path=runs/a"], "chat").model.model_name_or_path == str(runs / "base/model/x")


def test_an_adapter_of_another_tool_names_its_base_in_peft_s_own_file(runs):
    Path("theirs").mkdir()
    Path("theirs/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "hub/base"}))
    assert load_recipe(["theirs"], "chat").model.model_name_or_path == "hub/base"


def test_a_model_folder_is_a_recipe_too(runs):
    recipe = load_recipe(["base/model/x"], "chat")
    assert recipe.model.model_name_or_path == "base/model/x"


def test_an_export_brings_its_template(runs):
    Path("base/model/x/manifest.json").write_text(json.dumps({"template": "llama3"}))
    assert load_recipe(["model_name_or_path=base/model/x"], "chat").data.template == "llama3"
    assert load_recipe(["model_name_or_path=base/model/x", "template=auto"], "chat").data.template == "auto"
