"""Every family of models Forge names: load a random tiny one, take one training step, generate a token."""

import pytest
import torch
import transformers as t

from llmforge.config.load import load_recipe
from llmforge.model.adapters import count_parameters
from llmforge.model.loading import load_model
from llmforge.model.lora_targets import lora_targets

SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FUSED = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
FAMILIES = {
    "bloom": (t.BloomForCausalLM, t.BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)),
    "llama": (t.LlamaForCausalLM, t.LlamaConfig(**SIZES)),
    "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config(**SIZES)),
    "glm": (t.GlmForCausalLM, t.GlmConfig(**SIZES)),
    "glm4": (t.Glm4ForCausalLM, t.Glm4Config(**SIZES)),
    "mistral": (t.MistralForCausalLM, t.MistralConfig(**SIZES)),
    "gemma": (t.GemmaForCausalLM, t.GemmaConfig(**SIZES)),
    "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**SIZES)),
    "phi": (t.PhiForCausalLM, t.PhiConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "phi3": (t.Phi3ForCausalLM, t.Phi3Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "gpt_neox": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig(**FUSED, intermediate_size=64)),
    "falcon": (t.FalconForCausalLM, t.FalconConfig(**FUSED)),
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
}
# (name of the q, k, v projections, parameters of LoRA r=4 on them in two layers), worked out by r x (in + out).
QKV = {
    "bloom": (["query_key_value"], 2 * 4 * (32 + 96)),
    "llama": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "qwen2": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "qwen3": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "glm": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "glm4": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "mistral": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "gemma": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "gemma3": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "phi": (["q_proj", "k_proj", "v_proj"], 2 * 4 * ((32 + 32) + 2 * (32 + 16))),
    "phi3": (["qkv_proj"], 2 * 4 * (32 + 64)),
    "gpt_neox": (["query_key_value"], 2 * 4 * (32 + 96)),
    "falcon": (["query_key_value"], 2 * 4 * (32 + 48)),  # one key and value head for all queries
    "gpt2": (["c_attn"], 2 * 4 * (32 + 96)),
}


@pytest.fixture
def folder(request, tmp_path, tiny_tokenizer_dir):
    kind, config = FAMILIES[request.param]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    for path in tiny_tokenizer_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def loaded(folder, *words, for_training):
    recipe = load_recipe([f"model_name_or_path={folder}", "template=chatml", "lora_rank=4", *words], "show")
    return load_model(recipe, for_training=for_training)


def loss(model, ids):
    return model(input_ids=ids, labels=ids).loss


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_a_lora_step_lowers_the_loss_and_the_model_generates(folder):
    model = loaded(folder, for_training=True).model
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    assert all(parameter.dtype == torch.float32 for parameter in trainable)
    ids = torch.tensor([[1, 20, 30, 40, 50, 60, 2]])
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    before = loss(model, ids)
    for _ in range(2):  # B starts at 0, so A moves from the second step on
        loss(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model, ids) < before

    answering = loaded(folder, for_training=False).model
    assert not answering.training
    out = answering.generate(input_ids=ids, max_new_tokens=1, do_sample=False, eos_token_id=None)
    assert out.shape == (1, 8)


@pytest.mark.parametrize(("folder", "name"), zip(QKV, QKV, strict=True), indirect=["folder"])
def test_qkv_finds_the_projections_and_the_counts_are_exact(folder, name):
    names, parameters = QKV[name]
    model = loaded(folder, "lora_target=qkv", for_training=True).model
    plain = loaded(folder, for_training=False).model
    assert lora_targets(plain, ["qkv"]) == names
    assert count_parameters(model) == (parameters, sum(p.numel() for p in plain.parameters()) + parameters)


@pytest.mark.parametrize("folder", ["bloom", "llama", "gpt2", "phi3"], indirect=True)
def test_freezing_lets_the_last_layers_learn(folder):
    model = loaded(folder, "finetuning_type=freeze", "freeze_trainable_layers=1", for_training=True).model
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".1." in name for name in learning)
    assert {name for name, _ in model.named_parameters() if ".1." in name} == learning
