"""Packed linear layers give the model's own logits, and the model gives its plain weights up and back."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from llmforge.infer.local import packed
from llmforge.infer.local.packed import (
    KNOWN_ROWS,
    MOST_ROWS,
    PackedLinear,
    PackedSibling,
    PackedSiblings,
    Packing,
    filled_up,
    is_faster,
    pack,
    same_input,
)

IDS = torch.tensor([[5, 6, 7, 8, 9]])
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _faster(monkeypatch):
    monkeypatch.setattr(packed, "is_faster", lambda plain_s, packed_s: True)  # whatever this machine is doing


def logits(model):
    """Logits of one, of few and of several tokens at once."""
    with torch.no_grad():
        return torch.cat([model(IDS[:, :count]).logits[0] for count in (1, 3, 5)])


def test_logits_are_those_of_the_plain_layers_for_any_number_of_rows(model):
    before = logits(model)
    assert pack(model) is not None
    assert torch.allclose(logits(model), before, atol=1e-5)


def test_rows_are_filled_up_to_few_different_numbers():
    assert [filled_up(count) for count in (1, 4, 5, 32, 33, 64, 65, 255, 256, 257)] == [
        4, 4, 8, 32, 40, 64, 72, 256, 256, 260,
    ]  # fmt: skip
    assert {filled_up(count) for count in range(MOST_ROWS + 1)} == KNOWN_ROWS
    assert len(KNOWN_ROWS) == 36


def test_more_rows_than_the_most_are_computed_in_pieces():
    torch.manual_seed(0)
    layer = nn.Linear(8, 16).requires_grad_(False)
    for shape in ((3, 200, 8), (1, 3, 8), (4, 8), (1, 16, 8), (0, 8)):
        x = torch.randn(shape)
        assert torch.allclose(PackedLinear(layer)(x), layer(x), atol=1e-6)


def test_layers_that_read_the_same_input_are_one_product(model):
    packing = pack(model)
    groups = {}
    for name, layer in packing.layers.items():
        own = vars(layer)["forward"]
        groups.setdefault(id(getattr(own, "siblings", own)), []).append(name.rpartition(".")[2])
    one = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert sorted(groups.values()) == sorted([*one, *one, ["lm_head"]])


def test_siblings_that_are_too_wide_together_stay_apart(model, monkeypatch):
    monkeypatch.setattr(packed, "MOST_OUTPUTS", 64)  # of queries, keys and values; gate and up have 96
    before = logits(model)
    assert pack(model) is not None
    layer = model.model.layers[0]
    assert isinstance(layer.self_attn.k_proj.forward, PackedSibling)
    assert isinstance(layer.mlp.up_proj.forward, PackedLinear)
    assert torch.allclose(logits(model), before, atol=1e-5)


def test_siblings_compute_anew_what_was_changed_in_place():
    torch.manual_seed(0)
    layers = [nn.Linear(8, size).requires_grad_(False) for size in (16, 24)]
    first, second = PackedSiblings(layers).parts
    x = torch.randn(4, 8)
    assert torch.allclose(first(x), layers[0](x), atol=1e-6)
    x.mul_(2)
    assert torch.allclose(second(x), layers[1](x), atol=1e-6)
    assert torch.allclose(second(x), layers[1](x), atol=1e-6)
    assert torch.equal(second.plain(), layers[1].weight)


def test_siblings_are_called_one_after_the_other_with_one_tensor():
    x, y, z = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    assert same_input([("a", x), ("b", x), ("c", y), ("a", z), ("b", z)]) == [("a", "b")]
    assert same_input([("a", x), ("b", x), ("a", y), ("c", y)]) == []  # once with the one, once with the other


def test_layers_of_which_only_some_have_a_bias_are_products_of_their_own(model):
    model.model.layers[0].self_attn.k_proj.bias = None
    before = logits(model)
    packing = pack(model)
    attention = model.model.layers[0].self_attn
    assert not any(isinstance(layer.forward, PackedSibling) for layer in (attention.q_proj, attention.k_proj))
    assert isinstance(model.model.layers[1].self_attn.k_proj.forward, PackedSibling)
    assert packing is not None
    assert torch.allclose(logits(model), before, atol=1e-5)


def test_plain_weights_are_given_up_except_those_that_the_embedding_shares(model):
    pack(model)
    layers = [layer for layer in model.model.modules() if type(layer) is nn.Linear]
    assert len(layers) == 14
    assert {layer.weight.numel() for layer in layers} == {0}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (300, 32)


def test_plain_weights_are_there_inside_plain_and_stay_where_they_are_kept(model):
    weights = {name: layer.weight.clone() for name, layer in model.named_modules() if type(layer) is nn.Linear}
    packing = pack(model)
    with packing.plain():
        for name, layer in packing.layers.items():
            assert torch.equal(layer.weight, weights[name])
        packing.keep_plain("model.layers.0.mlp.up_proj")
    assert {name for name, layer in packing.layers.items() if layer.weight.numel()} == {
        "lm_head",
        "model.layers.0.mlp.up_proj",
    }


def test_plain_weights_come_back_although_somebody_wraps_a_layers_forward(model):
    weight = model.model.layers[0].mlp.up_proj.weight.clone()
    packing = pack(model)
    own, layer = model.model.layers[0].mlp.up_proj.forward, model.model.layers[0].mlp.up_proj
    layer.forward = lambda x: own(x)
    with packing.plain():
        assert torch.equal(layer.weight, weight)
    assert not layer.weight.numel()


def test_undo_gives_the_model_back(model):
    before = logits(model)
    packing = pack(model)
    packing.undo()
    assert torch.equal(logits(model), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_that_reads_its_weights_itself_gets_them_back(model):
    layer = model.model.layers[0].mlp
    layer.forward = lambda x: (layer.gate_proj(x) * (x @ layer.up_proj.weight.t())) @ layer.down_proj.weight.t()
    before = logits(model)
    assert pack(model) is None
    assert torch.equal(logits(model), before)


def test_layers_that_somebody_changed_stay_as_they_are(model):
    own = model.model.layers[1].mlp.up_proj
    own.forward = lambda x: torch.zeros(*x.shape[:-1], 48)
    before = logits(model)
    packing = pack(model)
    assert "model.layers.1.mlp.up_proj" not in packing.layers
    assert own.weight.numel()
    assert torch.allclose(logits(model), before, atol=1e-5)


def test_nothing_is_packed_where_it_is_no_faster(model, monkeypatch):
    monkeypatch.setattr(packed, "is_faster", is_faster)
    monkeypatch.setattr(packed, "time_layers", lambda layers: (0.001, 0.002))
    assert pack(model) is None
    monkeypatch.setattr(packed, "time_layers", lambda layers: (0.002, 0.001))
    assert pack(model) is not None


def test_the_trial_takes_as_many_layers_as_fit_and_at_least_one(model, monkeypatch):
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    rows = []
    monkeypatch.setattr(packed, "TRIAL_BYTES", 0)
    layers[0].forward = lambda x: rows.append(x.shape)
    plain_s, packed_s = packed.time_layers(layers)
    assert rows == [(packed.TRIAL_ROWS, 32)] * packed.TRIALS
    assert min(plain_s, packed_s) > 0


def test_a_copy_shares_the_packed_weights(model):
    before = logits(model)
    pack(model)
    assert torch.allclose(logits(copy.deepcopy(model)), before, atol=1e-5)


def test_a_model_in_bf16_is_packed_where_the_processor_can(model):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 instructions")
    model = model.bfloat16()
    before = logits(model).float()
    packing = pack(model)
    assert isinstance(packing, Packing)
    assert torch.allclose(logits(model).float(), before, atol=0.02)
