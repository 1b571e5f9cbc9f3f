"""Replies over shared blocks: whatever is cut, shared, thrown away or fails, the text is that of generate()."""

from __future__ import annotations

import pytest
import torch
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.padded import PaddedRunner
from llmforge.infer.local.paged import BLOCK_SIZE
from llmforge.infer.local.runner import PagedRunner
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds

LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Mistral": {**LLAMA, "sliding_window": 9},
    "Gemma2": {
        **LLAMA,
        "head_dim": 8,
        "sliding_window": 6,
        "attn_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
    },
}
PADDED = {"Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "Falcon": {**LLAMA, "num_kv_heads": 4}}
INSTRUCTION = [(7 * i) % 250 + 10 for i in range(37)]  # two full blocks and a part
PROMPTS = [[*INSTRUCTION, *range(20 + i, 60 + 7 * i)] for i in range(6)] + [[5], [30, 31] * 9]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def random_model(name, vocab_size):
    torch.manual_seed(1)
    sizes = {**FAMILIES, **PADDED}[name]
    config = getattr(transformers, f"{name}Config")(vocab_size=vocab_size, **sizes, eos_token_id=2, pad_token_id=0)
    config.initializer_range = 0.3  # flat random models repeat one token; this one wanders
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def core_over(model, tokenizer, *, chunk=None, **sizes):
    core = LocalCore(model, tokenizer, get_template("chatml", tokenizer), **sizes)
    if chunk:
        core._ready().chunk = chunk
    return core


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model("Llama", len(tokenizer))


@pytest.fixture(scope="module")
def expected(model):
    return [theirs(model, ids) for ids in PROMPTS]


def ask(ids, *, priority=0, **sampling):
    settings = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True, **sampling}
    return GenerateRequest("m", TokenIds(tuple(ids)), Sampling(**settings), priority=priority)


def theirs(model, ids):
    config = transformers.GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0)
    return model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()


def ids_of(replies):
    return [list(reply.token_ids) for (reply,) in replies]


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_of_prompts_shared_starts_and_preempted_replies_give_the_same_text(name, tokenizer):
    model = random_model(name, len(tokenizer))
    expected = [theirs(model, ids) for ids in PROMPTS]
    core = core_over(model, tokenizer, token_budget=10 * BLOCK_SIZE, chunk=16)
    assert isinstance(core._ready(), PagedRunner)
    requests = [ask(ids) for ids in PROMPTS]
    assert ids_of(core.generate_all(requests)) == expected
    stats = core.stats()
    assert stats.preempted > 0
    assert stats.found_tokens > 0
    assert stats.blocks_used == 0
    assert ids_of(core.generate_all(requests[::-1])) == expected[::-1]  # now from what the first round left


@pytest.mark.parametrize("name", PADDED)
def test_models_without_the_attention_interface_are_served_in_padded_batches(name, tokenizer):
    model = random_model(name, len(tokenizer))
    core = core_over(model, tokenizer, max_rows=3)
    assert isinstance(core._ready(), PaddedRunner)
    assert ids_of(core.generate_all([ask(ids) for ids in PROMPTS])) == [theirs(model, ids) for ids in PROMPTS]


def test_a_shared_instruction_is_computed_once_even_by_requests_that_come_together(model, tokenizer, expected):
    core = core_over(model, tokenizer)
    replies = core.generate_all([ask(ids) for ids in PROMPTS[:6]])
    assert ids_of(replies) == expected[:6]
    assert core.stats().found_tokens >= 5 * 2 * BLOCK_SIZE


def test_what_prompts_share_beyond_whole_blocks_is_copied(model, tokenizer):
    start = [11 + 3 * i for i in range(BLOCK_SIZE + 9)]
    prompts = [[*start, 300 + i, *range(40 + i, 80 + i)] for i in range(4)]
    core = core_over(model, tokenizer)
    for number, ids in enumerate(prompts):
        (reply,) = core.generate_all([ask(ids)])[0]
        assert list(reply.token_ids) == theirs(model, ids)
        assert core.stats().found_tokens == number * len(start)


def test_n_replies_share_their_prompt(model, tokenizer):
    core = core_over(model, tokenizer)
    pieces = [piece for _, piece in core.generate([ask(PROMPTS[5], n=4, temperature=1.0, seed=1)])]
    full = (len(PROMPTS[5]) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert core.stats().found_tokens == 3 * full
    assert [piece.usage.cached_tokens for piece in pieces if piece.usage] == [0]
    again = [piece for _, piece in core.generate([ask(PROMPTS[5])])]  # but for the last token, whose logits count
    assert [piece.usage.cached_tokens for piece in again if piece.usage] == [len(PROMPTS[5]) - 1]


def test_seeded_replies_are_the_same_alone_and_when_preempted(model, tokenizer):
    requests = [
        ask(ids, temperature=1.1, top_p=0.9, seed=i, repetition_penalty=1.3, frequency_penalty=0.2)
        for i, ids in enumerate(PROMPTS)
    ]
    alone = [core_over(model, tokenizer).generate_all([request])[0] for request in requests]
    small = core_over(model, tokenizer, token_budget=12 * BLOCK_SIZE, chunk=16)
    assert ids_of(small.generate_all(requests)) == ids_of(alone)
    assert small.stats().preempted > 0


def test_the_least_important_reply_is_preempted_first(model, tokenizer):
    core = core_over(model, tokenizer, token_budget=8 * BLOCK_SIZE)
    requests = [ask([9] * 40, priority=0, max_new_tokens=60), ask([8] * 40, priority=5, max_new_tokens=60)]
    ended = [number for number, piece in core.generate(requests) if piece.finish_reason]
    assert ended == [1, 0]
    assert core.stats().preempted > 0


def test_a_reply_longer_than_the_cache_makes_it_grow(model, tokenizer, expected):
    core = core_over(model, tokenizer, token_budget=2 * BLOCK_SIZE)
    assert ids_of(core.generate_all([ask(ids) for ids in PROMPTS])) == expected


def test_a_prompt_beyond_the_limit_of_the_cache_is_refused_with_both_numbers(model, tokenizer):
    core = core_over(model, tokenizer)
    core.set_cache(4 * BLOCK_SIZE * core._ready().bytes_per_token)
    long, short = core.generate_all([ask([5] * 70), ask([5] * 60, max_new_tokens=None)])
    assert "70 tokens" in long[0].error
    assert "the engine's cache is 64 tokens" in long[0].error
    assert (short[0].finish_reason, len(short[0].token_ids)) == ("length", 4)


def test_no_block_is_lost_when_requests_are_given_up(model, tokenizer):
    core = core_over(model, tokenizer, token_budget=20 * BLOCK_SIZE, chunk=16)
    for number in range(100):
        jobs = [core.prepare(ask(ids)) for ids in PROMPTS]
        for job in jobs:
            core.submit(job)
        for _ in range(number % 12):
            core.step()
        for job in jobs:
            job.cancelled = True
        while not core.is_idle:
            core.step()
        assert core.stats().blocks_used == 0
    assert not core._progress


def test_a_caller_who_stops_listening_leaves_nothing_behind(model, tokenizer, expected):
    core = core_over(model, tokenizer)
    for _ in core.generate([ask(ids) for ids in PROMPTS]):
        break
    assert core.is_idle
    assert core.stats().blocks_used == 0
    assert ids_of(core.generate_all([ask(PROMPTS[0])])) == expected[:1]


def test_changed_weights_are_used_after_invalidate(tokenizer):
    model = random_model("Llama", len(tokenizer))
    core = core_over(model, tokenizer)
    core.generate_all([ask(PROMPTS[0])])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    core.invalidate()
    assert ids_of(core.generate_all([ask(PROMPTS[0])])) == [theirs(model, PROMPTS[0])]


def test_released_memory_is_made_again_when_it_is_needed(model, tokenizer, expected):
    core = core_over(model, tokenizer)
    core.generate_all([ask(PROMPTS[0])])
    core.release()
    assert core.stats().blocks == 0
    assert ids_of(core.generate_all([ask(PROMPTS[0])])) == expected[:1]
    core.submit(core.prepare(ask([5])))
    with pytest.raises(RuntimeError, match="replies are running"):
        core.release()


def test_rows_that_shared_with_a_failing_one_are_computed_again_and_only_it_fails(tokenizer):
    """All begin with the same instruction; the planted module fails on one id that only the first of them has."""
    model = random_model("Llama", len(tokenizer))
    expected = [theirs(model, ids) for ids in PROMPTS[:4]]

    def explode(module, inputs):
        if (inputs[0] == 301).any():
            raise RuntimeError("planted")

    model.model.embed_tokens.register_forward_pre_hook(explode)
    core = core_over(model, tokenizer)
    bad, *good = core.generate_all([ask([*INSTRUCTION, 301, *range(40)]), *(ask(ids) for ids in PROMPTS[:4])])
    assert bad[0].finish_reason == "error"
    assert "planted" in bad[0].error
    assert ids_of(good) == expected
    assert core.stats().blocks_used == 0


def test_a_row_without_numbers_leaves_none_of_them_in_the_cache(tokenizer):
    model = random_model("Llama", len(tokenizer))
    expected = theirs(model, PROMPTS[1])
    with torch.no_grad():
        model.model.embed_tokens.weight[301] = float("nan")
    core = core_over(model, tokenizer, token_budget=8 * BLOCK_SIZE)
    for _ in range(3):
        assert core.generate_all([ask([301] * 50)])[0][0].finish_reason == "error"
        assert ids_of(core.generate_all([ask(PROMPTS[1])])) == [expected]


def test_a_model_whose_layers_answer_otherwise_over_blocks_is_not_run_over_them(tokenizer):
    """Its attention mixes in the neighbour on the line, which is a stranger where rows lie side by side."""
    model = random_model("Llama", len(tokenizer))
    layer = model.model.layers[0].self_attn
    plain = layer.forward
    layer.forward = lambda hidden_states, **rest: plain(hidden_states + hidden_states.roll(1, 1), **rest)
    assert isinstance(core_over(model, tokenizer)._ready(), PaddedRunner)


def test_the_models_own_attention_is_back_after_a_step(model, tokenizer):
    before = model.config._attn_implementation
    core_over(model, tokenizer).generate_all([ask([5])])
    assert model.config._attn_implementation == before
