"""Attention along shared prefixes equals attention row by row, in value and gradient, for every kind of layer."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.data.prefix_tree import build_forest
from llmforge.model.attention import (
    ForestMask,
    masked_attention,
    no_mask,
    segment_attention,
    supports_forest,
    use_forest_attention,
)


def row_by_row(query, key, value, paths, scale, window=None, softcap=None):
    """Plain attention of each path, written out; (heads, T, value width)."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    states = {}
    for path in paths:
        path = torch.from_numpy(path)
        scores = query[:, path] @ key[:, path].transpose(1, 2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        places = torch.arange(len(path))
        seen = places[:, None] >= places[None]
        if window:
            seen &= places[:, None] - places[None] < window
        out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[:, path]
        states.update({token: out[:, place] for place, token in enumerate(path.tolist())})
    return torch.stack([states[token] for token in range(query.shape[1])], 1)


ROWS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from([1, 2, 100]))
def test_both_forms_equal_attention_row_by_row(rows, min_shared):
    forest = build_forest([np.array(row) for row in rows], min_shared)
    mask, size = ForestMask.of(forest.segments, forest.positions), len(forest.tokens)
    draw = torch.Generator().manual_seed(0)
    shapes = ((4, size, 8), (2, size, 8), (2, size, 8), (4, size, 8))
    *inputs, grad = (torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_() for shape in shapes)
    expected = row_by_row(*inputs, forest.paths, 0.3)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for got in (segment_attention(*inputs, mask, 0.3), masked_attention(*inputs, mask, 0.3, chunk=5)):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
        for mine, his in zip(torch.autograd.grad(got, inputs, grad), wanted, strict=True):
            torch.testing.assert_close(mine, his, atol=1e-11, rtol=0)


def test_the_masked_form_honours_windows_soft_caps_and_narrow_values():
    forest = build_forest([np.array(row) for row in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8], [9, 9])], 1)
    mask, size = ForestMask.of(forest.segments, forest.positions), len(forest.tokens)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((4, size, 8), (2, size, 8), (2, size, 6))
    )
    for window, softcap in ((3, None), (None, 2.0), (3, 2.0)):
        got = masked_attention(query, key, value, mask, 0.3, window=window, softcap=softcap, chunk=4)
        expected = row_by_row(query, key, value, forest.paths, 0.3, window, softcap)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = {"sliding_window": 6, "head_dim": 8}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 7},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {**WINDOW, "query_pre_attn_scalar": 8},
    "Gemma3Text": {**WINDOW, "query_pre_attn_scalar": 8},
    "Glm": {"head_dim": 8},
    "Glm4": {"head_dim": 8},
    "Phi": {},
    "Phi3": {},
    "Granite": {},
    "Cohere": {},
    "Olmo2": {},
}


def random_model(family, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    attention = "eager" if family == "Gemma2" else "sdpa"
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()


def losses(model, rows):
    """Summed loss of rows that go through the model one by one, by its own attention."""
    total = 0
    for row in rows:
        ids = torch.from_numpy(row)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
    return total


def forest_losses(model, rows):
    forest = build_forest(rows, 2)
    mask = ForestMask.of(forest.segments, forest.positions)
    ids, places = torch.from_numpy(forest.tokens)[None], torch.from_numpy(forest.positions)[None]
    with no_mask():
        logits = model(input_ids=ids, position_ids=places, use_cache=False, forest=mask).logits[0]
    return sum(
        torch.nn.functional.cross_entropy(logits[path[:-1]], torch.from_numpy(row[1:]), reduction="sum")
        for row, path in zip(rows, forest.paths, strict=True)
    )


def value_and_gradient(model, loss):
    model.zero_grad()
    value = loss()
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_learns_the_same_from_a_forest_and_from_single_rows(family):
    draw = np.random.default_rng(0)
    start = draw.integers(3, 60, 9)
    rows = [np.concatenate([start, draw.integers(3, 60, n)]) for n in (1, 5, 12)]
    rows += [start, np.array([5, 6, 7]), np.concatenate([start[:4], [9, 9, 9]])]
    model = random_model(family, **FAMILIES[family]).eval()
    value, gradient = value_and_gradient(model, lambda: losses(model, rows))
    use_forest_attention(model)
    for checkpointing in (False, True):
        if checkpointing:
            model.train()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        again, same = value_and_gradient(model, lambda: losses(model, rows))
        shared, shared_gradient = value_and_gradient(model, lambda: forest_losses(model, rows))
        assert again == pytest.approx(value, rel=1e-12)
        assert shared == pytest.approx(value, rel=1e-8)  # eager attention of Gemma 2 sums in fp32
        # The models' own norms compute in fp32, which leaves 1e-7 between any two orders of summation.
        assert (same - gradient).norm() <= 1e-6 * gradient.norm()
        assert (shared_gradient - gradient).norm() <= 1e-6 * gradient.norm()


def test_a_model_under_forest_attention_still_generates_as_before():
    model = random_model("Llama").eval()
    prompt = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(prompt, **options)
    use_forest_attention(model)
    assert torch.equal(model.generate(prompt, **options), before)
    assert "forge" not in model.config.to_json_string()


@pytest.mark.parametrize("family", ["Bloom", "Falcon"])
def test_models_without_the_interface_are_named(family):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert f"{family}ForCausalLM does not use transformers' attention interface" in supports_forest(model)


def test_scores_are_scaled_by_the_width_unless_the_model_says_otherwise():
    query = torch.ones(1, 2, 4, dtype=torch.float64)
    value = torch.tensor([[[0.0] * 4, [1.0] * 4]], dtype=torch.float64)
    key = torch.tensor([[[0.0] * 4, [1.0] * 4]], dtype=torch.float64)
    mask = ForestMask.of(np.array([[0, 2, 2]]), np.arange(2))
    got = segment_attention(query, key, value, mask, 4**-0.5)[0, 1, 0].item()
    assert got == pytest.approx(math.exp(2) / (1 + math.exp(2)))
