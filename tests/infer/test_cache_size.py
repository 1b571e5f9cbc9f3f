"""How much a server's cache may take, where the recipe says nothing and where it does."""

from __future__ import annotations

import pytest
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local import core as core_module
from llmforge.infer.local.core import CACHE_TOKENS, LocalCore


@pytest.fixture
def core(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=CACHE_TOKENS,
    )  # fmt: skip
    return LocalCore(transformers.LlamaForCausalLM(config).eval(), tokenizer, get_template("chatml", tokenizer))


BYTES_PER_TOKEN = 2 * 16 * 4  # keys and values of one layer in fp32


@pytest.mark.parametrize(("context", "workers", "each"), [(512, 1, 1), (512, 2, 1 / 2), (512, 4, 1 / 4)])
def test_workers_share_room_for_so_many_tokens(core, context, workers, each):
    core.context_length = context
    core.set_cache(None, workers)
    assert core.limits.capacity == CACHE_TOKENS * each


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_each_worker_has_room_for_a_whole_context(core, workers):
    core.set_cache(None, workers)
    assert core.limits.capacity == core.context_length == CACHE_TOKENS


def test_a_large_model_gets_no_more_bytes_than_the_most(core, monkeypatch):
    monkeypatch.setattr(core_module, "CACHE_BYTES", 1000 * BYTES_PER_TOKEN)
    core.set_cache(None, 2)
    assert core.limits.capacity == 500


def test_the_recipes_bytes_are_shared_and_bounded_by_what_is_free(core):
    core.set_cache(64_000 * BYTES_PER_TOKEN, 2)
    assert core.limits.capacity == 32_000
    core.set_cache(1 << 60, 2)
    assert core.limits.capacity == core._ready().free // 2
