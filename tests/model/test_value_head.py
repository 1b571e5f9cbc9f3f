"""A value head is a (1, H) matrix on a model's last states: any layout gives the same values; saved and loaded."""

import numpy as np
import pytest
import torch
import transformers

from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import IGNORE, Encoded
from llmforge.data.plan import lay_packed, lay_padded, lay_tree
from llmforge.errors import RecipeError
from llmforge.model.adapters import add_lora
from llmforge.model.attention import use_forest_attention
from llmforge.model.value_head import (
    FILE,
    ValueHead,
    attach_value_head,
    has_value_head,
    load_value_head,
    new_value_head,
    save_value_head,
    state_values,
    value_head_of,
    values_at,
)


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)


ROWS = [Encoded(ids, [IGNORE] * 20 + ids[20:]) for ids in ([*range(20), 30, 31], [*range(20), 40, 41, 42])]


def test_a_value_is_the_heads_product_with_the_last_state(model):
    head = new_value_head(model)
    assert [*dict(head.named_parameters())] == ["weight"]
    assert head.weight.shape == (1, 32)
    batch = lay_padded(ROWS, [0, 1])
    states = model(torch.from_numpy(batch.input_ids), output_hidden_states=True).hidden_states[-1]
    places = np.array([0, 21, 23 + 22])
    expected = (states.reshape(-1, 32)[places] * head.weight[0]).sum(-1)
    torch.testing.assert_close(values_at(model, head, batch, places), expected)


def test_every_layout_gives_the_labelled_tokens_own_values(model):
    head = new_value_head(model)
    padded = lay_padded(ROWS, [0, 1], shift=0)
    assert padded.target.tolist() == [30, 31, 40, 41, 42]
    assert padded.row.tolist() == [0, 0, 1, 1, 1]
    expected = state_values(model, head, padded)
    torch.testing.assert_close(state_values(model, head, lay_packed(ROWS, [0, 1], shift=0)), expected)
    use_forest_attention(model)
    tree = lay_tree(ROWS, [0, 1], shift=0)
    assert tree.num_tokens == 25
    torch.testing.assert_close(state_values(model, head, tree), expected)


def test_an_attached_head_is_part_of_the_wrapped_model(model):
    wrapped = add_lora(model, FinetuneConfig(lora_rank=2), [])
    head = attach_value_head(wrapped, new_value_head(wrapped))
    assert value_head_of(wrapped) is head
    assert any(parameter is head.weight for parameter in wrapped.parameters())
    del model.value_head


def test_a_head_is_saved_and_loaded(model, tmp_path):
    head = new_value_head(model)
    save_value_head(head, tmp_path)
    assert has_value_head(tmp_path)
    loaded = load_value_head(model, tmp_path)
    assert torch.equal(loaded.weight, head.weight)
    assert not loaded.weight.requires_grad


def test_a_missing_damaged_or_foreign_head_is_named(model, tmp_path):
    with pytest.raises(RecipeError, match="train one with stage: rm"):
        load_value_head(model, tmp_path)
    (tmp_path / FILE).write_bytes(b"x")
    with pytest.raises(RecipeError, match="damaged"):
        load_value_head(model, tmp_path)
    save_value_head(ValueHead(8), tmp_path)
    with pytest.raises(RecipeError, match="for hidden states of 8 numbers; this base has 32"):
        load_value_head(model, tmp_path)
