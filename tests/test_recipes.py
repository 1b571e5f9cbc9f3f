"""Every recipe we ship loads, finds what it names, fits its JSON Schema, and says what its comments promise."""

import json
import math
import re
from pathlib import Path

import pytest

from llmforge.chain.command import check as check_links
from llmforge.check import check_recipe
from llmforge.config.docs import schema_file
from llmforge.config.json_schema import SEVERAL
from llmforge.config.kind import recipe_kind
from llmforge.config.load import load_recipe
from llmforge.config.paths import bundled
from llmforge.config.yaml_text import parse_recipe
from llmforge.data.registry import resolve_dataset

REPO = Path(__file__).parents[1]
# recipes/data/ holds recipes of `forge-cli data generate`, which have a form of their own.
RECIPES = sorted(str(path.relative_to(REPO)) for path in REPO.glob("recipes/**/*.yaml") if path.parent.name != "data")
COMMANDS = {"serve": "api", "eval": "predict", "export": "export"}  # by folder; the others train
QUICKSTART = "recipes/classify_lora.yaml"


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))


@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_loads_and_finds_its_data_and_template(path):
    if recipe_kind([path]) in SEVERAL:
        result = check_links([path])
    else:
        result = check_recipe(load_recipe([path], COMMANDS.get(path.split("/")[1], "train")))
    assert result.problems == []
    assert not result.notes or "extends" in (REPO / path).read_text()  # nothing in it is without effect


@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_fits_the_schema_its_first_line_names(path):
    jsonschema = pytest.importorskip("jsonschema")
    text = (REPO / path).read_text(encoding="utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    schema = json.loads(((REPO / path).parent / named[1]).read_text(encoding="utf-8"))
    given, _ = parse_recipe(text, path)
    jsonschema.Draft202012Validator(schema).validate({item.key: item.value for item in given})


def test_the_schema_beside_the_recipes_is_current():
    written = (REPO / "recipes/forge.schema.json").read_text(encoding="utf-8")
    assert written == schema_file(), "run `python -m llmforge.config.docs`"


@pytest.mark.parametrize("command", ["train", "predict", "chat", "api"])
def test_the_quickstart_recipe_serves_every_command(command):
    assert load_recipe([QUICKSTART], command).model.model_name_or_path.startswith("pypi:")


def test_the_quickstart_is_small_and_measured_on_200_rows():
    recipe = load_recipe([QUICKSTART], "train")
    passes = recipe.data.max_samples * recipe.train.num_train_epochs
    assert passes <= 700
    assert len(list(open_rows("report_classify_en_test"))) >= 200
    labels = {row["output"] for row in open_rows("report_classify_en_train")}
    assert 8 <= len(labels) <= 10


def test_the_bloom_chain_holds_the_values_of_its_manual():
    recipes = check_links(["recipes/rlhf/bloom_chain.yaml"]).recipes
    rows = {
        name: (r.train.per_device_train_batch_size * r.train.gradient_accumulation_steps * int(r.launch.nproc))
        for name, r in recipes.items()
    }
    assert (rows["pt"], rows["sft"], rows["rm"], rows["ppo"]) == (256, 64, 64, 16)
    rates = {name: (r.train.learning_rate, r.train.num_train_epochs) for name, r in recipes.items()}
    assert (rates["pt"], rates["sft"], rates["rm"]) == ((1e-5, 3), (2e-5, 2), (2e-5, 5))
    assert rates["ppo"] == (9.56e-6, 3)
    lengths = {name: r.data.cutoff_len for name, r in recipes.items()}
    assert (lengths["pt"], lengths["sft"], lengths["rm"], lengths["ppo"]) == (512, 1024, 512, 256)
    ppo = recipes["ppo"]
    assert (ppo.finetune.lora_rank, ppo.finetune.lora_target, ppo.generate.max_new_tokens) == (32, ["qkv"], 256)
    assert ppo.rl.critic_learning_rate == 5e-6
    assert recipes["rm"].model.model_name_or_path == "bigscience/bloom-560m"
    assert {r.train.warmup_steps for r in recipes.values()} == {0.1}


def test_the_vicuna_recipe_holds_the_values_of_its_script():
    recipe = load_recipe(["recipes/sft/vicuna_fsdp.yaml"], "train")
    train = recipe.train
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps * int(recipe.launch.nproc) == 128
    assert (train.learning_rate, train.num_train_epochs, train.weight_decay) == (2e-5, 3, 0)
    assert (train.lr_scheduler_type, train.warmup_steps, recipe.data.cutoff_len) == ("cosine", 0.04, 2048)
    assert recipe.hf["fsdp"]


def open_rows(name):
    with resolve_dataset(name, "data").path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def test_the_official_baichuan2_recipe_holds_the_values_of_its_fine_tune_py():
    recipe = load_recipe(["recipes/sft/baichuan2_official_lora.yaml"], "train")
    train, finetune = recipe.train, recipe.finetune
    assert (recipe.data.cutoff_len, train.num_train_epochs, train.per_device_train_batch_size) == (512, 4, 16)
    assert (train.learning_rate, train.lr_scheduler_type) == (2e-5, "constant")
    assert (train.adam_beta1, train.adam_beta2, train.weight_decay, train.max_grad_norm) == (0.9, 0.98, 1e-4, 1.0)
    assert (finetune.lora_rank, finetune.lora_alpha, finetune.lora_dropout) == (1, 32, 0.1)
    assert finetune.lora_target == ["W_pack"]
    full = load_recipe(["recipes/sft/baichuan2_official_full.yaml"], "train")
    assert (full.finetune.finetuning_type, full.train.learning_rate) == ("full", 2e-5)


def test_the_legal_recipe_counts_steps_and_says_how_many_passes_they_are():
    recipe = load_recipe(["recipes/sft/legal_faq.yaml"], "train")
    assert (recipe.train.max_steps, recipe.train.save_steps, recipe.train.eval_steps) == (3000, 500, 500)
    assert (recipe.finetune.lora_rank, recipe.finetune.lora_alpha, recipe.finetune.lora_dropout) == (8, 32, 0.1)
    rows = len(list(open_rows("legal_faq_chat_train")))
    assert math.floor(3000 * recipe.train.per_device_train_batch_size / rows) > 200
    assert f"these {rows}" in (REPO / "recipes/sft/legal_faq.yaml").read_text(encoding="utf-8")


def test_shipped_folders_are_found():
    for name in ("configs/deepspeed/z2.json", "recipes/classify_lora.yaml", "data/dataset_info.json"):
        assert bundled(name).is_file()
