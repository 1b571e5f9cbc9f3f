"""Padded, packed and tree passes are the same training: equal losses, equal gradients, whatever the rows."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import IGNORE, Encoded
from llmforge.data.plan import plan_batches
from llmforge.model.adapters import add_lora
from llmforge.model.attention import use_forest_attention
from llmforge.model.forward import token_losses
from llmforge.model.lean import take_lean_layers

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = ("Llama", "Qwen2", "Gemma", "Mistral")


def make(family, finetuning_type="lora", dtype=torch.float64):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if finetuning_type == "lora":
        model = add_lora(model, FinetuneConfig(lora_rank=4), [])
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # starts at 0, which would hide half of the gradient
                weight.data.normal_(std=0.1)
    model = model.to(dtype)
    take_lean_layers(model)
    use_forest_attention(model.get_base_model() if finetuning_type == "lora" else model)
    return model.train()


def step(model, rows, layout, budget):
    """Mean loss of all rows and every gradient, by name."""
    model.zero_grad()
    batches = plan_batches(rows, budget, layout)
    count = sum(len(batch.target) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = token_losses(model, batch).sum() / count
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def instruction_rows(seed=0):
    """A long shared start, rows inside each other, equal rows, an unrelated row, labels that differ from their ids."""
    draw = np.random.default_rng(seed)
    start = draw.integers(3, 60, 40).tolist()
    rows = []
    for length in (5, 9, 14, 1):
        ids = [*start, *draw.integers(3, 60, length).tolist()]
        rows.append(Encoded(ids, [IGNORE] * 40 + ids[40:]))
    rows += [rows[1], Encoded(start, start), Encoded([*start[:20], 9, 9], [IGNORE] * 20 + [7, 9])]
    return [*rows, Encoded([5, 6, 7], [5, 6, 7])]


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_every_gradient_agree_in_fp64(family, finetuning_type):
    model, rows = make(family, finetuning_type), instruction_rows()
    loss, gradients = step(model, rows, "padded", 10_000)
    for layout, budget in (("packed", 10_000), ("tree", 10_000), ("tree", 64), ("tree", 8), ("packed", 50)):
        other, others = step(model, rows, layout, budget)
        assert other == pytest.approx(loss, rel=1e-9)
        assert others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (others[name] - gradient).norm() <= 1e-9 * gradient.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_in_fp32_the_tree_errs_no_more_than_the_padded_path(family):
    rows = instruction_rows()
    _, exact = step(make(family), rows, "padded", 10_000)

    def error(layout):
        _, gradients = step(make(family, dtype=torch.float32), rows, layout, 10_000)
        gap = sum((gradients[name].double() - exact[name]).square().sum() for name in exact)
        return (gap / sum(exact[name].square().sum() for name in exact)).sqrt().item()

    assert error("tree") <= 2 * error("padded") + 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_neither_order_nor_cutting_changes_a_step(layout, dtype, tolerance):
    model, rows = make("Llama", dtype=dtype), instruction_rows()
    loss, gradients = step(model, rows, layout, 10_000)
    shuffled = [rows[i] for i in (7, 2, 5, 0, 6, 3, 1, 4)]
    for others, budget in ((shuffled, 10_000), (rows, 128), (shuffled, 64)):
        other, changed = step(model, others, layout, budget)
        assert other == pytest.approx(loss, rel=tolerance)
        for name, gradient in gradients.items():
            assert (changed[name] - gradient).norm() <= tolerance * gradient.norm(), name


ROWS = st.lists(st.lists(st.integers(3, 4), min_size=2, max_size=50), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.integers(2, 120))
def test_any_rows_give_the_padded_loss_and_gradient(rows, budget):
    model = make("Llama")
    rows = [Encoded(ids, [IGNORE, *ids[1:]]) for ids in rows]
    loss, gradients = step(model, rows, "padded", 10_000)
    other, others = step(model, rows, "tree", budget)
    assert other == pytest.approx(loss, rel=1e-9)
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-15, name


def test_what_rows_share_is_computed_once():
    rows = instruction_rows()
    (tree,) = plan_batches(rows, 10_000, "tree")
    assert tree.row_tokens == sum(len(row.input_ids) for row in rows) == 303
    # the start once, the four rows' own parts, the equal row's own part again (below the length worth sharing),
    # two tokens after half of the start, and the unrelated row
    assert tree.num_tokens == 40 + (5 + 9 + 14 + 1) + 9 + 2 + 3
