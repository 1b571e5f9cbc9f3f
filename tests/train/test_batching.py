"""Which layout a run takes, why, and how many tokens a pass may hold."""

import dataclasses

import pytest
import torch
import transformers

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError
from llmforge.model.attention import runs_forest, use_forest_attention
from llmforge.model.lean import take_lean_layers
from llmforge.model.memory import MOMENTARY
from llmforge.train.batching import choose_batching, pass_memory

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"intermediate_size": 48, "num_key_value_heads": 2}


def make(family="Llama", **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    return transformers.AutoModelForCausalLM.from_config(config)


def recipe(**keys):
    words = [f"{name}={value}" for name, value in {"model_name_or_path": "x", **keys}.items()]
    return load_recipe(words, "show")


def test_a_model_with_the_interface_shares_starts_and_says_what_it_allows():
    model = make(**MORE)
    batching = choose_batching(recipe(), model, longest_row=50)
    assert batching.line.share
    assert batching.line.tokens == 4096  # a tiny model: the cap decides, not the memory
    assert runs_forest(model)
    assert batching.told.startswith("batching: tree, shared starts computed once, up to 4,096 tokens a pass (about")
    assert "2 gated MLPs, 5 norms" in batching.told


def test_packed_keeps_rows_apart_on_a_line():
    batching = choose_batching(recipe(batching="packed", tokens_per_pass=700), make(**MORE), longest_row=50)
    assert (batching.line.share, batching.line.tokens) == (False, 700)
    assert "from the recipe" in batching.told


@pytest.mark.parametrize(
    ("model", "keys", "reason"),
    [
        (lambda: make("Bloom"), {}, "BloomForCausalLM does not use transformers' attention interface"),
        (lambda: make("Falcon"), {}, "FalconForCausalLM does not use transformers' attention interface"),
        (lambda: make(**MORE, attention_dropout=0.1), {}, "drops attention weights"),
        (lambda: make(**MORE), {"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
        (lambda: make(**MORE), {"flash_attn": "fa2"}, "flash_attn: fa2 was asked for"),
    ],
    ids=["Bloom", "Falcon", "dropout", "neftune", "fa2"],
)
def test_where_it_is_not_exact_rows_are_padded_and_the_log_says_why(model, keys, reason):
    batching = choose_batching(recipe(**keys), model(), longest_row=50)
    assert batching.line is None
    assert batching.told.startswith(f"batching: padded, rows of similar length together ({reason}") or (
        reason in batching.told
    )
    with pytest.raises(RecipeError, match=r"batching: 'tree' is not possible here: .*Set batching: padded"):
        choose_batching(recipe(batching="tree", **keys), model(), longest_row=50)


def test_less_memory_means_shorter_lines_and_then_recomputing():
    memory = pass_memory(make(**MORE))
    roomy = memory.fixed + memory.per_token * 1000
    limited = dataclasses.replace(memory, held=0, head=0)
    assert memory.tokens_within(int(roomy)) == pytest.approx(1000, abs=1)
    assert limited.tokens_within(0) == 256
    model = make(**MORE)
    told = choose_batching(recipe(train_memory_gb=0.001), model, longest_row=50).told
    assert "up to 256 tokens a pass" in told
    assert "activations are computed again, since the longest row needs it" in told
    assert model.is_gradient_checkpointing


def test_a_model_that_learns_nothing_keeps_nothing_and_takes_the_longest_lines():
    model = make(**MORE).requires_grad_(False)
    memory = pass_memory(model)
    assert memory.per_token == 0
    assert memory.tokens_within(memory.fixed + 1) == 4096
    assert memory.tokens_within(memory.fixed) == 256
    assert choose_batching(recipe(), model, longest_row=50).line.tokens == 4096


def test_a_resumed_run_cuts_its_passes_as_before():
    batching = choose_batching(recipe(), make(**MORE), longest_row=50, tokens_before=1280)
    assert batching.line.tokens == 1280


def test_a_token_leaves_what_its_layers_keep():
    model = make(**MORE)
    take_lean_layers(model)
    use_forest_attention(model)
    # inputs of two norms, the output of the one before plain linears, q + k + v, attention's output, gate + up
    layer = 3 * 32 + (32 + 16 + 16) + 32 + 2 * 48 + (4 + 2)  # and log-sum-exps of 4 heads, scales of 2 norms
    ends = 2 * 32 + 2 * 8  # the last norm's input and output, cosines and sines
    memory = pass_memory(model)
    assert memory.per_token == pytest.approx((1 + MOMENTARY) * 4 * (2 * layer + ends), rel=0.03)
    assert memory.kept_per_token == pytest.approx(4 * (2 * (layer - 32) + 32 + 1), rel=0.03)
