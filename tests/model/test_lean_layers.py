"""The lean forms of linears, gated MLPs and norms equal the layers they stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llmforge.model.lean import take_lean_layers
from llmforge.model.linear import Linear, gated_mlp, lora_linear, rms_norm
from llmforge.model.rotary import rotary, with_lean_rotary


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def linear(width, out, lora, bias):
    a, b = (draw(3, width), draw(out, 3)) if lora else (None, None)
    return Linear(draw(out, width), draw(out) if bias else None, a, b, 0.7 if lora else 1.0)


def plain(x, layer):
    y = F.linear(x, layer.weight, layer.bias)
    return y if layer.a is None else y + layer.scale * (x @ layer.a.t()) @ layer.b.t()


def assert_equal_with_gradients(got, expected, inputs):
    inputs = [x for x in inputs if x is not None]
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(expected)
    for mine, his in zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(mine, his, atol=1e-10, rtol=1e-10)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_lora_linear_is_the_sum_of_its_two_products(bias):
    x, layer = draw(2, 5, 6), linear(6, 9, True, bias)
    assert_equal_with_gradients(lora_linear(x, layer), plain(x, layer), [x, *layer[:4]])


def test_dropout_falls_on_the_low_rank_input_only():
    x, layer = draw(10, 6), linear(6, 9, True, True)
    torch.manual_seed(1)
    got = lora_linear(x, layer, dropout=0.5)
    torch.manual_seed(1)
    kept = torch.rand(10, 6, dtype=torch.float64) >= 0.5
    expected = F.linear(x, layer.weight, layer.bias) + 0.7 * ((x * kept * 2) @ layer.a.t()) @ layer.b.t()
    assert_equal_with_gradients(got, expected, [x, *layer[:4]])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_is_its_three_products(lora, bias):
    x = draw(2, 5, 6)
    gate, up, down = (linear(*size, lora, bias) for size in ((6, 9), (6, 9), (9, 6)))
    expected = plain(F.silu(plain(x, gate)) * plain(x, up), down)
    assert_equal_with_gradients(gated_mlp(x, gate, up, down), expected, [x, *gate[:4], *up[:4], *down[:4]])


def test_a_norm_divides_by_the_root_of_the_mean_square():
    x, weight = draw(2, 5, 6), draw(6)
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight
    assert_equal_with_gradients(rms_norm(x, weight, 1e-5), expected, [x, weight])


SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def lora_model(family="Llama", **options):
    config = getattr(transformers, f"{family}Config")(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options))
    for name, weight in model.named_parameters():  # norms of ones would hide a wrong formula
        if "norm" in name:
            weight.data.normal_(1.0, 0.2)
    return model


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("family", "mlps", "norms"), [("Llama", 2, 5), ("Qwen2", 2, 5), ("Qwen3", 2, 9), ("Mistral", 2, 5), ("Gemma", 0, 5)]
)
def test_a_models_gradient_stays_the_same_and_another_activation_is_left_alone(family, mlps, norms):
    model, ids = lora_model(family), torch.randint(3, 50, (2, 7))
    before = gradients(model, ids)
    taken = take_lean_layers(model)
    assert (taken.linears, taken.mlps, taken.norms, taken.rotaries) == (14, mlps, norms, 2)
    after = gradients(model, ids)
    assert (after - before).norm() < 4e-6 * before.norm()  # another order of sums, through two layers


@pytest.mark.parametrize("tokens_first", [False, True])
def test_turned_heads_and_their_gradient_are_the_librarys(tokens_first):
    query, key = draw(2, 4, 5, 6), draw(2, 1, 5, 6)
    if tokens_first:  # as projections leave them
        query, key = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key))
    cos, sin = draw(2, 5, 6).detach(), draw(2, 5, 6).detach()  # halves that differ, which Llama's do not
    expected = apply_rotary_pos_emb(query, key, cos, sin)
    for mine, his, x in zip(rotary(None, query, key, cos, sin), expected, (query, key), strict=True):
        assert_equal_with_gradients(mine, his, [x])


def test_what_turns_otherwise_is_left_to_the_library():
    query, key, cos = draw(1, 2, 5, 6), draw(1, 2, 5, 6), draw(1, 5, 4).detach()
    for case in ((query, key, cos, cos), (query, key, cos, cos, None), (query[0], key[0], cos, cos)):
        assert rotary(lambda *given: given, *case) == case
    half_turned = transformers.models.glm.modeling_glm.GlmAttention
    assert with_lean_rotary(half_turned.forward) is None  # turns neighbours, and a part of each head only


def test_the_librarys_own_rotary_stays_where_it_is():
    own, forward = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    take_lean_layers(lora_model())
    assert modeling_llama.apply_rotary_pos_emb is own
    assert modeling_llama.LlamaAttention.forward is forward


def test_dora_keeps_its_own_forward():
    model, ids = lora_model(use_dora=True), torch.randint(3, 50, (2, 7))
    before = gradients(model, ids)
    take_lean_layers(model)
    assert torch.allclose(gradients(model, ids), before, rtol=1e-5, atol=1e-7)


def test_a_switched_off_adapter_is_switched_off_in_the_lean_form_too():
    model, ids = lora_model(), torch.randint(3, 50, (2, 7))
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=ids).logits
    take_lean_layers(model)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, base)
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, base, atol=1e-6, rtol=1e-5)


def test_an_adapter_that_has_learned_nothing_and_none_give_the_same_bits():
    torch.manual_seed(0)
    model, ids = lora_model(), torch.randint(3, 50, (2, 40))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    take_lean_layers(model)
    on = model(input_ids=ids).logits
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, on)


def test_bf16_weights_are_left_to_the_layers_themselves():
    model = lora_model().bfloat16()
    taken = take_lean_layers(model)
    assert (taken.mlps, taken.norms) == (0, 0)
    ids = torch.randint(3, 50, (2, 7))
    assert torch.isfinite(gradients(model, ids)).all()


def test_a_copy_of_a_model_computes_with_its_own_weights():
    model, ids = lora_model().eval(), torch.randint(3, 50, (2, 7))
    take_lean_layers(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for weight in twin.parameters():
            weight.zero_()
        assert torch.equal(model(input_ids=ids).logits, before)
        assert twin(input_ids=ids).logits.abs().max() == 0
