"""What a pass keeps lies in one block, used again, and changes no number."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import Encoded
from llmforge.data.plan import lay_tree
from llmforge.model.adapters import add_lora
from llmforge.model.arena import Arena, closed, empty_to_keep, keep
from llmforge.model.attention import use_forest_attention
from llmforge.model.forward import token_losses
from llmforge.model.lean import take_lean_layers

ROWS = [Encoded(ids, ids) for ids in ([*range(20), *range(30, 30 + n)] for n in (3, 9, 5))]


def make():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = add_lora(LlamaForCausalLM(config), FinetuneConfig(lora_rank=4), [])
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    take_lean_layers(model)
    use_forest_attention(model.get_base_model())
    return model.train()


def gradients(model, arena: Arena | None, passes: int = 1) -> list[torch.Tensor]:
    model.zero_grad()
    for _ in range(passes):
        batch = lay_tree(ROWS, range(3))
        if arena is None:
            token_losses(model, batch).sum().backward()
        else:
            with arena.open():
                token_losses(model, batch).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("size", [0, 20_000, 10**7])
def test_gradients_are_the_same_with_no_room_some_room_and_enough(size):
    model = make()
    for got, expected in zip(gradients(model, Arena(size), passes=2), gradients(model, None, passes=2), strict=True):
        assert torch.equal(got, expected)


def test_a_pass_uses_the_memory_of_the_one_before():
    arena = Arena(1000)
    places = []
    for _ in range(2):
        with arena.open():
            places.append(keep(torch.ones(10)).data_ptr())
    assert places[0] == places[1]


def test_what_lies_in_the_arena_is_not_copied_again():
    arena = Arena(1000)
    with arena.open():
        taken = empty_to_keep(torch.ones(1), 3, 4)
        assert keep(taken) is taken
        assert keep(taken.t()).data_ptr() == taken.data_ptr()
    assert arena.wanted == 64  # 48 bytes, rounded up to a cache line


def test_what_does_not_fit_is_left_where_it_is_and_counted():
    arena = Arena(64)
    big = torch.ones(1000)
    with arena.open():
        assert keep(big) is big
    assert arena.wanted == 4032


def test_without_an_open_arena_nothing_is_copied():
    tensor = torch.ones(3)
    assert keep(tensor) is tensor


def test_a_kept_tensor_that_is_written_to_is_noticed():
    arena = Arena(10_000)
    with arena.open():
        x = torch.ones(4, requires_grad=True)
        kept_one, kept_two = keep(x.detach()), keep(x.detach())
        y = x * kept_one
        kept_two.zero_()  # another tensor of the same block: no matter
        y.sum().backward()
        y = x * kept_one
        kept_one.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_pass_that_keeps_nothing_takes_nothing_of_the_arena_around_it():
    model, batch, arena = make(), lay_tree(ROWS, range(3)), Arena(1 << 20)
    with arena.open():
        with torch.no_grad(), closed():
            token_losses(model, batch)
        assert arena.wanted == 0
        token_losses(model, batch)
        assert arena.wanted > 0
