"""A hundred clients at once: none waits much longer than the others, by the work done meanwhile and not by a clock."""

from __future__ import annotations

import pytest
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.runner import CPU_CHUNK
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds

PROMPT, NEW = 92, 20  # tokens: 250 characters in, 20 out
STEP_COST = 8  # what a step costs beside its tokens, in tokens


@pytest.fixture(scope="module")
def core(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer), max_rows=64)


def latencies(core, num_clients, num_requests):
    """Work between each request and its end, where every client asks again when it has its answer."""
    asked, found, now = {}, [], 0

    def ask(number):
        ids = tuple((number * 7919 + place * 104729) % core.vocab_size for place in range(PROMPT))
        sampling = Sampling(temperature=0, max_new_tokens=NEW, ignore_eos=True)
        job = core.prepare(GenerateRequest("m", TokenIds(ids), sampling))
        core.submit(job)
        asked[id(job)] = (job, now)

    numbers = iter(range(num_requests))
    for _ in range(num_clients):
        ask(next(numbers))
    while asked:
        before = core.stats().computed_tokens
        pieces = core.step()
        now += core.stats().computed_tokens - before + STEP_COST
        for job, piece in pieces:
            if piece.usage is not None:
                found.append(now - asked.pop(id(job))[1])
                if (number := next(numbers, None)) is not None:
                    ask(number)
    return sorted(found)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_longest_of_104_clients_waits_at_most_half_longer_than_the_median(core, num_workers):
    """All come in one moment; one worker with the steps of two cores, or one of two workers with its half."""
    core.invalidate()
    core._ready().chunk = 2 * CPU_CHUNK // num_workers
    found = latencies(core, 104 // num_workers, 1000 // num_workers)
    assert len(found) == 1000 // num_workers
    assert found[-1] <= 1.4 * found[len(found) // 2]
