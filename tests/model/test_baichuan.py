import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from llmforge.config.load import load_recipe
from llmforge.config.schema import ModelConfig
from llmforge.errors import RecipeError
from llmforge.model.adapters import count_parameters
from llmforge.model.loading import load_model
from llmforge.model.sources import local_folder, resolve_model

HIDDEN, INNER, LAYERS, HEADS, VOCABULARY = 32, 48, 2, 4, 384
IDS = torch.tensor([1, 20, 30, 40, 50, 2, 60])


@pytest.fixture
def published(tmp_path, tiny_tokenizer_dir, monkeypatch):
    """Write a random model in the layout of baichuan-inc/Baichuan2-7B-Chat; returns its folder and weights."""
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))

    def write(pickled=False, shards=1, **changes):
        torch.manual_seed(0)
        weights = {
            "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN),
            "model.norm.weight": torch.rand(HIDDEN) + 0.5,
            "lm_head.weight": torch.randn(VOCABULARY, HIDDEN) * 3,
        }
        for i in range(LAYERS):
            layer = f"model.layers.{i}"
            weights |= {
                f"{layer}.self_attn.W_pack.weight": torch.randn(3 * HIDDEN, HIDDEN) / 5,
                f"{layer}.self_attn.o_proj.weight": torch.randn(HIDDEN, HIDDEN) / 5,
                f"{layer}.self_attn.rotary_emb.inv_freq": torch.rand(HIDDEN // HEADS // 2),
                f"{layer}.mlp.gate_proj.weight": torch.randn(INNER, HIDDEN) / 5,
                f"{layer}.mlp.up_proj.weight": torch.randn(INNER, HIDDEN) / 5,
                f"{layer}.mlp.down_proj.weight": torch.randn(HIDDEN, INNER) / 5,
                f"{layer}.input_layernorm.weight": torch.rand(HIDDEN) + 0.5,
                f"{layer}.post_attention_layernorm.weight": torch.rand(HIDDEN) + 0.5,
            }
        folder = tmp_path / "Baichuan2-7B-Chat"
        folder.mkdir()
        if pickled:
            torch.save(weights, folder / "pytorch_model.bin")
        elif shards == 1:
            save_file(weights, folder / "model.safetensors")
        else:
            names = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(weights)}
            for file in set(names.values()):
                save_file({name: weights[name] for name in names if names[name] == file}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        config = {
            "architectures": ["BaichuanForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
            "model_type": "baichuan",
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 128,
            "model_max_length": 128,
            "rms_norm_eps": 1e-6,
            "vocab_size": VOCABULARY,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "z_loss_weight": 0,
        }
        config.update(changes)
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tiny_tokenizer_dir / name).read_bytes())
        return folder, weights

    return write


def reference(weights, norm_head):
    """Logits (T, V) of IDS, straight from modeling_baichuan.py."""

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    size = HIDDEN // HEADS
    angles = torch.outer(torch.arange(len(IDS)).float(), 10000 ** (-torch.arange(0, size, 2) / size))
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def rotate(x):  # (heads, T, size)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    states = weights["model.embed_tokens.weight"][IDS]
    for i in range(LAYERS):
        w = {n.removeprefix(f"model.layers.{i}."): t for n, t in weights.items() if n.startswith(f"model.layers.{i}.")}
        x = norm(states, w["input_layernorm.weight"]) @ w["self_attn.W_pack.weight"].T
        q, k, v = x.unflatten(-1, (3, HEADS, size)).permute(1, 2, 0, 3)
        scores = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(size)
        scores = scores + torch.full((len(IDS), len(IDS)), -torch.inf).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        states = states + mixed @ w["self_attn.o_proj.weight"].T
        x = norm(states, w["post_attention_layernorm.weight"])
        gated = F.silu(x @ w["mlp.gate_proj.weight"].T) * (x @ w["mlp.up_proj.weight"].T)
        states = states + gated @ w["mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    return norm(states, weights["model.norm.weight"]) @ (F.normalize(head) if norm_head else head).T


@pytest.mark.parametrize(
    ("layout", "norm_head"),
    [({}, True), ({"shards": 3}, True), ({"pickled": True}, True), ({"z_loss_weight": None}, False)],
    ids=["baichuan2", "sharded", "pickled", "baichuan1"],
)
def test_the_converted_model_computes_the_published_logits(published, layout, norm_head):
    folder, weights = published(**layout)
    config = ModelConfig(model_name_or_path=str(folder))
    assert local_folder(config) == folder  # the tokenizer is there before the conversion
    converted = resolve_model(config)
    assert local_folder(config) == resolve_model(config) == converted != folder
    model, info = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(model(IDS[None]).logits[0], reference(weights, norm_head), atol=2e-5, rtol=1e-5)


def test_a_recipe_for_the_original_trains_on_the_llama_layout(published):
    folder, _ = published()
    recipe = load_recipe(
        [f"model_name_or_path={folder}", "template=chatml", "lora_target=W_pack", "lora_rank=4"], "show"
    )
    loaded = load_model(recipe, for_training=True)
    assert loaded.folder != folder
    assert loaded.model.active_peft_config.target_modules == ["k_proj", "q_proj", "v_proj"]
    assert count_parameters(loaded.model)[0] == LAYERS * 3 * 4 * (HIDDEN + HIDDEN)
    assert "auto_map" not in json.loads((loaded.folder / "config.json").read_text())


@pytest.mark.parametrize("changes", [{"hidden_size": 5120}, {"max_position_embeddings": None}])
def test_the_13b_models_are_refused_by_name(published, changes):
    folder, _ = published(**changes)
    with pytest.raises(RecipeError, match="13B model \\(ALiBi positions\\), which is not supported"):
        resolve_model(ModelConfig(model_name_or_path=str(folder)))
