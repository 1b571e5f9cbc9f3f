"""Greedy replies to a hundred prompts are those of transformers' generate, alone and 32 at a time, plain and packed."""

from __future__ import annotations

import pytest
import torch
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local import packed
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.lean_layers import take_lean_forms
from llmforge.infer.local.packed import pack
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds

INSTRUCTION = [20 + 7 * i % 300 for i in range(150)]  # shared by 60 prompts, in three lengths
NUM_PROMPTS, NEW_TOKENS = 100, 8


def prompt(number):
    own = [5 + (number * 31 + place * place) % 370 for place in range(1 + number % 23)]
    return [*INSTRUCTION[: 150 - 41 * (number % 3)], *own] if number % 5 < 3 else own * (1 + number % 4)


PROMPTS = [prompt(number) for number in range(NUM_PROMPTS)]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def random_model(vocab_size):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    config.initializer_range = 0.3  # flat random models repeat one token; this one wanders
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def expected(tokenizer):
    model = random_model(len(tokenizer))
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    return [model.generate(torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist() for ids in PROMPTS]


@pytest.fixture(scope="module", params=["plain", "as served"])
def core(request, tokenizer):
    model = random_model(len(tokenizer))
    if request.param == "as served":
        take_lean_forms(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "is_faster", lambda plain_s, packed_s: True)
            if pack(model) is None:
                pytest.skip("torch was built without oneDNN")
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer), max_rows=32)


def replies(core, prompts, **sampling):
    settings = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True, **sampling}
    requests = [
        GenerateRequest("m", TokenIds(tuple(ids)), Sampling(**settings, seed=number))
        for number, ids in enumerate(prompts)
    ]
    return [list(reply.token_ids) for (reply,) in core.generate_all(requests)]


def test_a_hundred_prompts_in_batches_of_32_and_one_by_one(core, expected):
    lengths = {len(ids) for ids in PROMPTS}
    assert (min(lengths) < 3, max(lengths) > 150, len(lengths) > 40) == (True, True, True)
    assert replies(core, PROMPTS) == expected
    assert core.stats().found_tokens > 40 * len(INSTRUCTION) / 2
    core.invalidate()
    assert [replies(core, [ids])[0] for ids in PROMPTS] == expected


def test_seeded_draws_are_the_same_alone_and_in_a_batch(core):
    drawn = {"temperature": 1.1, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1}
    together = replies(core, PROMPTS[:40], **drawn)
    alone = []
    for number, ids in enumerate(PROMPTS[:40]):
        core.invalidate()
        request = GenerateRequest(
            "m", TokenIds(tuple(ids)), Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=number, **drawn)
        )
        alone.append(list(core.generate_all([request])[0][0].token_ids))
    assert together == alone
    assert len(set(map(tuple, alone))) > 35
