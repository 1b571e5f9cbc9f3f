"""Replies of four adapters and the base, written in the same steps, are those of PEFT's own generate."""

from __future__ import annotations

import asyncio

import peft
import pytest
import torch
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.infer.local.adapter_updates import read_updates
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.engine import LocalEngine
from llmforge.infer.local.lora_batch import AdapterBatch
from llmforge.infer.local.served import ServedModels
from llmforge.infer.protocol import GenerateRequest, ModelCard, Sampling, TokenIds, UnknownModel

SIZES = {
    "Llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2,
    },
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
TARGETS = {"Llama": ["q_proj", "v_proj", "down_proj"], "Bloom": ["query_key_value", "dense"]}
KINDS = {
    "a": {"r": 2},
    "b": {"r": 8, "use_rslora": True},
    "c": {"r": 4, "use_dora": True},
    "d": {"r": 2, "lora_alpha": 1},
}
NAMES = ["", *KINDS]
START = list(range(20, 60))  # a start that all prompts share, longer than a block of the cache
PROMPTS = [[*START[: 40 - 9 * (i % 4)], 60 + i % 50, 70 + 3 * i % 200, *range(5, 5 + i % 7)] for i in range(100)]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def make(name, folder, vocab_size):
    """A random base in `folder`/base and adapters of several kinds beside it."""
    torch.manual_seed(2)
    settings = {"vocab_size": vocab_size, "eos_token_id": 2, "pad_token_id": 0, **SIZES[name]}
    config = getattr(transformers, f"{name}Config")(**settings)
    config.initializer_range = 0.3
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.save_pretrained(folder / "base")
    for kind, extra in KINDS.items():
        base = type(model).from_pretrained(folder / "base")
        lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS[name], init_lora_weights=False, **extra)
        peft.get_peft_model(base, lora).save_pretrained(folder / kind)
    return type(model)


def theirs(kind, folder, adapter, prompts):
    """What transformers and PEFT write after each prompt."""
    model = kind.from_pretrained(folder / "base").eval()
    if adapter:
        model = peft.PeftModel.from_pretrained(model, folder / adapter).eval()
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0)
    return [
        model.generate(input_ids=torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist()
        for ids in prompts
    ]


def ask(name, ids, **sampling):
    return GenerateRequest(
        name or "base", TokenIds(tuple(ids)), Sampling(**{"temperature": 0, "max_new_tokens": 10, **sampling})
    )


def core_of(kind, folder, tokenizer):
    model = kind.from_pretrained(folder / "base").eval()
    adapters = AdapterBatch(model)
    for name in KINDS:
        adapters.add(name, read_updates(model, folder / name))
    names = {"base": "", **{name: name for name in KINDS}}
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer), served=names, adapters=adapters)


@pytest.mark.parametrize(("name", "count"), [("Llama", 100), ("Bloom", 15)])
def test_greedy_replies_of_five_models_in_one_batch_are_those_of_peft(name, count, tokenizer, tmp_path):
    kind = make(name, tmp_path, len(tokenizer))
    core = core_of(kind, tmp_path, tokenizer)
    which = [NAMES[i % 5] for i in range(count)]
    expected = [[]] * count
    for place, adapter in enumerate(NAMES):
        expected[place::5] = theirs(kind, tmp_path, adapter, PROMPTS[place:count:5])
    requests = [ask(*pair) for pair in zip(which, PROMPTS[:count], strict=True)]
    together = [list(replies[0].token_ids) for replies in core.generate_all(requests)]
    core.invalidate()
    alone = [list(core.generate_all([request])[0][0].token_ids) for request in requests]
    assert together == expected
    assert alone == expected
    assert len({tuple(core.generate_all([ask(name, PROMPTS[0])])[0][0].token_ids) for name in NAMES}) > 3


def test_a_seeded_reply_is_the_same_alone_and_among_adapters(tokenizer, tmp_path):
    core = core_of(make("Llama", tmp_path, len(tokenizer)), tmp_path, tokenizer)
    requests = [ask(NAMES[i % 5], PROMPTS[i], temperature=1.2, top_p=0.9, seed=i) for i in range(10)]
    together = [replies[0].token_ids for replies in core.generate_all(requests)]
    assert together == [core.generate_all([request])[0][0].token_ids for request in requests]


def test_adapters_come_and_go_while_replies_are_written(tokenizer, tmp_path):
    kind = make("Llama", tmp_path, len(tokenizer))
    core = LocalCore(
        kind.from_pretrained(tmp_path / "base").eval(),
        tokenizer,
        get_template("chatml", tokenizer),
        served={"base": ""},
    )
    expected = {name: tuple(theirs(kind, tmp_path, name, PROMPTS[1:2])[0]) for name in ("", "a")}

    async def collect(engine, name, **sampling):
        pieces = [piece async for piece in engine.generate(ask(name, PROMPTS[1], **sampling))]
        return tuple(id for piece in pieces for id in piece.token_ids), pieces[-1].finish_reason

    async def scenario():
        engine = LocalEngine(ServedModels(core, [ModelCard("base", "base", None, 512)]))
        await engine.start()
        try:
            long = asyncio.create_task(collect(engine, "base", max_new_tokens=200, ignore_eos=True))
            while not engine.stats().running:
                await asyncio.sleep(0.01)
            await engine.load_adapter("a", str(tmp_path / "a"))
            assert [card.id for card in engine.models()] == ["base", "a"]
            with pytest.raises(RecipeError, match="a model called 'a' is served already"):
                await engine.load_adapter("a", str(tmp_path / "b"))
            with pytest.raises(RecipeError, match="no folder at /nowhere"):
                await engine.load_adapter("b", "/nowhere")
            both = await asyncio.gather(collect(engine, "a"), collect(engine, "base"))
            await engine.unload_adapter("a")
            with pytest.raises(UnknownModel):
                await collect(engine, "a")
            return both, await long
        finally:
            await engine.stop()

    both, long = asyncio.run(scenario())
    assert [ids for ids, _ in both] == [expected["a"], expected[""]]
    assert (len(long[0]), long[1]) == (200, "length")
