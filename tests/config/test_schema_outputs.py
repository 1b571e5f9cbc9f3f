"""What is made from the schema: JSON Schema, help, explain, pages, starters, the shown recipe."""

import json
import os
from pathlib import Path

import pytest

from llmforge import cli
from llmforge.chain.command import check as check_links
from llmforge.config import aliases
from llmforge.config.docs import keys_page
from llmforge.config.explain import explain
from llmforge.config.help import command_help
from llmforge.config.json_schema import SEVERAL, recipe_schema
from llmforge.config.keys import NESTED, READS, keys
from llmforge.config.kind import recipe_kind
from llmforge.config.load import load_recipe
from llmforge.config.starters import STARTERS
from llmforge.config.yaml_text import parse_recipe
from llmforge.errors import RecipeError

REPO = Path(__file__).parents[2]
COMMAND_OF = {"predict": "predict", "chat": "chat", "export": "export", "api": "api"}


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def as_json(text: str) -> dict:
    given, _ = parse_recipe(text, "recipe.yaml")
    return {item.key: item.value for item in given}


def forms(name: str) -> list[dict]:
    group, _, field = name.rpartition(".")
    properties = recipe_schema()["properties"]
    prop = properties[group]["properties"][field] if group else properties[name]
    return prop.get("anyOf", [prop])


@pytest.mark.parametrize("name", sorted(keys()))
def test_choices_and_ranges_of_the_json_schema_are_those_of_the_code(name):
    key = keys()[name]
    enums = [form["enum"] for form in forms(name) if "enum" in form]
    enums += [form["items"]["enum"] for form in forms(name) if "enum" in form.get("items", {})]
    assert enums == ([list(key.choices)] if key.choices is not None else [])
    for word, bound in (
        ("exclusiveMinimum", key.rule.above),
        ("minimum", key.rule.at_least),
        ("exclusiveMaximum", key.rule.below),
        ("maximum", key.rule.at_most),
    ):
        bounds = {form[word] for form in forms(name) if word in form}
        assert bounds == ({bound} if bound is not None and key.choices is None else set())


def test_old_names_are_in_the_json_schema_and_marked():
    properties = recipe_schema()["properties"]
    assert all(properties[name].get("deprecated") for name in aliases.RENAMED)
    assert not set(aliases.REFUSED) & set(properties)


def test_every_shipped_recipe_validates_and_loads(validator, monkeypatch):
    monkeypatch.chdir(REPO)
    files = sorted(path for path in REPO.glob("recipes/**/*.yaml") if path.parent.name != "data")  # those make data
    for file in files:
        errors = [error.message for error in validator.iter_errors(as_json(file.read_text(encoding="utf-8")))]
        assert errors == [], file
        if recipe_kind([str(file)]) in SEVERAL:
            assert check_links([str(file)]).problems == []
        else:
            load_recipe([str(file)], "show")


def test_an_editor_underlines_links_and_values_of_the_wrong_form(validator):
    for text in ("chain: [pt, sft]\n", "chain: {pt: 5}\n", "sweep: {lora_rank: 8}\n", "sweep: {lora_rank: []}\n"):
        assert list(validator.iter_errors(as_json(text + "output_dir: x\n"))), text


@pytest.mark.parametrize("text", ["lora_rank: 0\n", "stage: stf\n", "lerning_rate: 1\n", "launch: {nprocs: 1}\n"])
def test_an_editor_underlines_what_the_loader_refuses(validator, text):
    assert list(validator.iter_errors(as_json(text)))
    with pytest.raises(RecipeError):
        load_recipe([*text.strip().replace(": {", ".").replace("}", "").replace(": ", "=").split("\n")], "show")


def test_an_editor_accepts_references_lists_and_null(validator):
    text = "seed: '${data_seed}'\ndataset: [a, b]\neval_dataset: a, b\nenable_thinking: null\nrun_name: ${seed}x\n"
    assert not list(validator.iter_errors(as_json(text)))


@pytest.mark.parametrize("job", sorted(STARTERS))
def test_every_starter_loads_and_validates(job, validator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("new.yaml").write_text(STARTERS[job])
    recipe = load_recipe(["new.yaml"], COMMAND_OF.get(job, "train"))
    assert recipe.notes == ()
    known = json.loads((REPO / "data/dataset_info.json").read_text(encoding="utf-8"))
    assert set(recipe.data.dataset) | set(recipe.data.eval_dataset) <= set(known)
    assert not list(validator.iter_errors(as_json(STARTERS[job])))


@pytest.mark.parametrize("command", sorted(READS))
def test_help_names_every_key_of_a_command_with_help_and_an_example(command):
    text = command_help(command, "What it does.", "forge-cli x")
    assert "  $ forge-cli x" in text
    for name in {"train": ("learning_rate", "launch.nproc"), "api": ("port", "adapters")}.get(command, ("template",)):
        assert f"  {name} " in text
    assert ("learning_rate" in text) == (command == "train")


@pytest.mark.parametrize("name", [*keys(), "dataloader_num_workers", *aliases.RENAMED, *aliases.VALUES])
def test_every_key_can_be_explained(name):
    assert explain(name).startswith(name)


def test_explain_says_what_is_declared():
    assert explain("lora_dropout").splitlines() == [
        "lora_dropout: Dropout before the update.",
        "  type: a number",
        "  default: 0.0",
        "  range: at least 0 and below 1",
        "  read by: train",
    ]
    assert "also written: evaluation_strategy" in explain("eval_strategy")
    assert "known and refused" in explain("use_badam")
    assert "without effect" in explain("use_fast_tokenizer")
    assert "stages: dpo" in explain("pref_loss")
    assert "path: looked up beside the recipe" in explain("dataset_dir")
    assert "secret" in explain("api_key")
    assert explain("extends").startswith("extends")
    assert explain("plugins").startswith("plugins")


def test_an_unknown_key_is_explained_by_the_nearest():
    with pytest.raises(RecipeError, match=r"lora_rnk: no such key\. Did you mean 'lora_rank'\?"):
        explain("lora_rnk")


def test_the_page_of_keys_is_current():
    page = (REPO / "docs/keys.md").read_text(encoding="utf-8")
    assert page == keys_page(), "python -m llmforge.config.docs writes it anew"


def test_show_prints_every_value_with_its_origin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("lora_rank: 4\nevaluation_strategy: epoch\nhf_hub_token: hush\ntf32: true\n")
    assert cli.main(["recipe", "show", "r.yaml", "seed=3", "launch.nproc=2"]) == 0
    out, err = capsys.readouterr()
    lines = {line.split(":")[0].strip(): " ".join(line.split()) for line in out.splitlines()}
    assert lines["lora_rank"] == "lora_rank: 4 # r.yaml line 1"
    assert lines["eval_strategy"] == "eval_strategy: epoch # r.yaml line 2, as evaluation_strategy"
    assert lines["seed"] == "seed: 3 # command line"
    assert lines["nproc"] == "nproc: 2 # command line"
    assert lines["learning_rate"] == "learning_rate: 5.0e-05 # default"
    assert lines["tf32"] == "tf32: true # r.yaml line 4"
    assert "hush" not in out
    assert "note: r.yaml line 2: evaluation_strategy is now eval_strategy" in err


def test_show_as_json_has_values_and_origins(tmp_path, capsys):
    assert cli.main(["recipe", "show", "lora_rank=4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["recipe"]["lora_rank"] == 4
    assert set(shown["recipe"]["launch"]) == {k.field for k in keys().values() if k.group in NESTED}
    assert shown["origins"] == {"lora_rank": "command line"}


def test_a_new_recipe_is_printed_or_written_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe", "new", "sft"]) == 0
    assert capsys.readouterr().out == STARTERS["sft"]
    assert cli.main(["recipe", "new", "sft", "sub/mine.yaml"]) == 0
    assert Path("sub/mine.yaml").read_text() == STARTERS["sft"]
    assert cli.main(["recipe", "new", "sft", "sub/mine.yaml"]) == 2
    assert cli.main(["recipe", "new", "sftt"]) == 2
    assert cli.main(["recipe", "new"]) == 2
    assert "'sftt' is no job. Did you mean 'sft'?" in capsys.readouterr().err
    assert os.listdir("sub") == ["mine.yaml"]


def test_the_schema_command_prints_json(capsys):
    assert cli.main(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(recipe_schema()))
