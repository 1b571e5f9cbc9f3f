import importlib
import json
import shutil

import pytest
import torch

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError
from llmforge.model.device import mixed_precision
from llmforge.model.loading import load_model, load_text
from llmforge.model.pissa import save_adapter
from llmforge.model.weights import fingerprint


@pytest.fixture
def copy(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def recipe_of(folder, *words):
    return load_recipe([f"model_name_or_path={folder}", "template=chatml", *words], "show")


def load(folder, *words, for_training=True):
    return load_model(recipe_of(folder, *words), for_training=for_training)


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_cpu_computes_in_fp32_unless_told_otherwise(copy):
    assert load(copy, for_training=True).model.dtype == torch.float32
    assert load(copy, for_training=False).model.dtype == torch.float32
    assert load(copy, "infer_dtype=bfloat16", for_training=False).model.dtype == torch.bfloat16
    assert load(copy, "finetuning_type=full", "pure_bf16=true").model.dtype == torch.bfloat16
    assert mixed_precision(recipe_of(copy), torch.device("cpu")) == torch.float32


def test_training_whole_weights_leaves_the_file_on_disk_alone(copy):
    before = fingerprint(copy)
    model = load(copy, "finetuning_type=full").model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert fingerprint(copy) == before


def test_a_truncated_weight_file_is_one_message(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"model\.safetensors: damaged or cut short: [\d,]+ bytes"):
        load(copy)


def test_missing_weights_are_never_made_up(copy):
    change_config(copy, num_hidden_layers=3)
    with pytest.raises(RecipeError, match=r"9 weights of the model are missing, for example model\.layers\.2"):
        load(copy)


def test_weights_of_another_shape_are_one_message(copy):
    change_config(copy, intermediate_size=48)
    with pytest.raises(RecipeError, match=r"config\.json and the weights disagree about shapes"):
        load(copy)


def test_tensors_that_are_not_used_are_said(copy, capsys):
    change_config(copy, num_hidden_layers=1)
    load(copy)
    assert "9 tensors of the files are not used, for example model.layers.1." in capsys.readouterr().err


def test_remote_code_runs_only_when_allowed_and_is_named(copy):
    change_config(copy, model_type="strange", auto_map={"AutoModelForCausalLM": "modeling_strange.Model"})
    (copy / "modeling_strange.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(
        RecipeError, match=r"modeling_strange\.py \(sha256 [0-9a-f]{12}\)\. Read it, then say trust_remote_code"
    ):
        load(copy)
    assert not (copy / "ran").exists()


def test_a_class_of_transformers_is_preferred_to_remote_code(copy):
    change_config(copy, auto_map={"AutoModelForCausalLM": "modeling_strange.Model"})
    (copy / "modeling_strange.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    assert type(load(copy, "trust_remote_code=true", for_training=False).model).__name__ == "LlamaForCausalLM"
    assert not (copy / "ran").exists()


def test_an_unknown_architecture_is_one_message(copy):
    change_config(copy, model_type="strange")
    with pytest.raises(RecipeError, match="is of type 'strange', which transformers does not know"):
        load(copy)


@pytest.mark.parametrize(("key", "name"), [("eager", "eager"), ("disabled", "eager"), ("sdpa", "sdpa")])
def test_the_attention_kernel_is_the_one_asked_for(copy, key, name):
    assert load(copy, f"flash_attn={key}", for_training=False).model.config._attn_implementation == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may work here")
@pytest.mark.parametrize("key", ["fa2", "fa3"])
def test_a_kernel_that_is_not_here_is_an_error(copy, key):
    with pytest.raises(RecipeError, match=f"flash_attn: {key} needs an NVIDIA card"):
        load(copy, f"flash_attn={key}")


def test_rope_scaling_by_name_makes_room_for_cutoff_len(copy):
    for for_training in (True, False):
        config = load(copy, "rope_scaling=yarn", "cutoff_len=2000", for_training=for_training).model.config
        assert config.rope_parameters["rope_type"] == "yarn"
        assert config.rope_parameters["factor"] == 4.0
        assert config.rope_parameters["rope_theta"] == 10000.0
        assert config.max_position_embeddings == 2048


def test_rope_scaling_as_a_mapping_is_passed_on(copy):
    recipe = recipe_of(copy, "rope_scaling={type: linear, factor: 3.0}")
    assert load_model(recipe, for_training=False).model.config.rope_parameters["factor"] == 3.0


def test_rope_scaling_without_need_is_said(copy, capsys):
    config = load(copy, "rope_scaling=linear", "cutoff_len=512").model.config
    assert config.rope_parameters["rope_type"] == "default"
    assert "no need, the model reads 512 tokens" in capsys.readouterr().err


def test_added_tokens_grow_the_embeddings_and_are_saved_with_the_adapter(copy, tmp_path):
    words = ["resize_vocab=true", "add_tokens=[燕尾箭头]", "add_special_tokens=[<|map|>]", "lora_target=q_proj"]
    loaded = load(copy, *words)
    embeddings = loaded.model.get_input_embeddings().weight
    assert embeddings.shape[0] == len(loaded.tokenizer) == 386
    torch.testing.assert_close(embeddings[384], embeddings[:384].mean(0))
    assert embeddings.requires_grad
    assert loaded.tokenizer.ids("燕尾箭头") == [384]
    assert loaded.tokenizer.control("<|map|>") == 385
    assert load_text(recipe_of(copy, *words), copy)[0].ids("燕尾箭头") == [384]

    with torch.no_grad():
        embeddings[384] = 7.0
    save_adapter(loaded.model, tmp_path / "adapter", recipe_of(copy, *words).finetune)
    again = load(copy, *words, f"adapter_name_or_path={tmp_path / 'adapter'}", for_training=False)
    assert again.model.get_input_embeddings().weight[384].tolist() == [7.0] * 32


def test_a_library_that_is_absent_is_named(copy):
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:
        with pytest.raises(RecipeError, match=r"quantization_bit: 4 needs .*llmforge\[bitsandbytes\]"):
            load(copy, "quantization_bit=4")
    change_config(copy, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    with pytest.raises(RecipeError, match="model_name_or_path: "):
        load(copy)
    with pytest.raises(RecipeError, match="quantised already"):
        load(copy, "quantization_bit=8")
