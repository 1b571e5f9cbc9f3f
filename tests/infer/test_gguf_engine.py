"""The gguf engine on the tiny model, against transformers on the same weights."""

from __future__ import annotations

import asyncio
import shutil

import pytest
import tiny_gguf
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmforge.config.load import load_recipe
from llmforge.data.example import Message
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.infer.gguf import GgufEngine, read_shape
from llmforge.infer.protocol import Conversation, EngineUnavailable, GenerateRequest, RequestError, Sampling, TokenIds

PROMPTS = (
    "The printer on floor 3 is jammed.",
    "打印机卡纸了",
    '{"label":',
    "Please reset my password, I cannot log in.",
)


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir, tmp_path_factory):
    """The tiny model, whose head never prefers bytes beyond ASCII: llama.cpp leaves out ids of half characters."""
    folder = tmp_path_factory.mktemp("ascii") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tokenizer = load_tokenizer(folder)
    for id in range(len(tokenizer)):
        if not tokenizer.decode([id]).isascii():
            tensors["lm_head.weight"][id] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def gguf_path(model_dir):
    """tiny.gguf with its tokenizer beside it."""
    return tiny_gguf.write_gguf(model_dir, model_dir / "tiny.gguf")


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(gguf_path, runner):
    words = [f"model_name_or_path={gguf_path}", "template=chatml", "infer_backend=gguf", "threads=1", "worker_rows=4"]
    engine = GgufEngine.from_recipe(load_recipe(words, "api"))
    runner.run(engine.start())
    yield engine
    runner.run(engine.stop())


def ask(text="hello", ids=None, constraint=None, **sampling):
    prompt = TokenIds(tuple(ids)) if ids else Conversation((Message("user", text),))
    return GenerateRequest(
        "tiny", prompt, Sampling(**{"temperature": 0.0, "max_new_tokens": 12} | sampling), constraint
    )


async def collect(engine, request):
    return [piece async for piece in engine.generate(request)]


def reply(pieces):
    return [id for piece in pieces for id in piece.token_ids], "".join(piece.text for piece in pieces)


def test_greedy_replies_are_those_of_transformers(engine, runner, model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    async def all_at_once():
        return await asyncio.gather(*(collect(engine, ask(text, ignore_eos=True)) for text in PROMPTS))

    for text, pieces in zip(PROMPTS, runner.run(all_at_once()), strict=True):
        ids = runner.run(engine.tokenize("tiny", Conversation((Message("user", text),))))
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False,
            eos_token_id=[], pad_token_id=0,
        )  # fmt: skip
        given, said = reply(pieces)
        assert given == out[0, len(ids) :].tolist()
        assert said == engine.tokenizer.decode(given, skip_special=True)
        assert pieces[-1].finish_reason == "length"
        assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens) == (len(ids), 12)


def test_a_seed_gives_the_same_reply_again_and_n_replies_differ(engine, runner):
    request = ask(temperature=1.5, seed=7, n=3, ignore_eos=True)
    runs = [runner.run(collect(engine, request)) for _ in range(2)]
    texts = [["".join(p.text for p in pieces if p.index == index) for index in range(3)] for pieces in runs]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert runs[0][-1].usage.completion_tokens == 36


def test_a_stop_id_and_a_stop_string_end_the_reply_before_them(engine, runner):
    ids, text = reply(runner.run(collect(engine, ask(ignore_eos=True))))
    pieces = runner.run(collect(engine, ask(stop_ids=(ids[4],), ignore_eos=True)))
    assert reply(pieces)[0] == ids[: ids.index(ids[4]) + 1]
    assert pieces[-1].finish_reason == "stop"
    cut = runner.run(collect(engine, ask(stop=(text[3:6],), ignore_eos=True)))
    assert reply(cut)[1] == text[: text.index(text[3:6])]


def test_logprobs_come_with_as_many_alternatives_as_asked_for(engine, runner):
    pieces = runner.run(collect(engine, ask(logprobs=2, max_new_tokens=3, ignore_eos=True)))
    entries = [entry for piece in pieces for entry in piece.logprobs]
    assert [len(entry.top) for entry in entries] == [2, 2, 2]
    assert all(entry.logprob == entry.top[0][2] for entry in entries)
    none = runner.run(collect(engine, ask(logprobs=0, max_new_tokens=2, ignore_eos=True)))
    assert [entry.top for piece in none for entry in piece.logprobs] == [(), ()]


def test_a_schema_binds_the_reply(engine, runner):
    schema = {"enum": ["打印机", "箭头"]}  # characters of several tokens
    pieces = runner.run(collect(engine, ask(constraint={"type": "json_schema", "schema": schema}, max_new_tokens=60)))
    assert reply(pieces)[1] in ('"打印机"', '"箭头"')
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("field", "value"), [("presence_penalty", 0.5), ("frequency_penalty", 0.5), ("penalty_alpha", 0.6)]
)
def test_what_llama_cpp_lacks_is_refused_by_engine_and_field(engine, runner, field, value):
    with pytest.raises(RequestError, match=f"{field}: the gguf engine does not have it"):
        runner.run(collect(engine, ask(**{field: value})))


def test_a_request_that_is_left_frees_its_slot(engine, runner):
    async def leave():
        pieces = engine.generate(ask(max_new_tokens=400, ignore_eos=True))
        await anext(pieces)
        await pieces.aclose()
        assert engine.stats().running == 0
        return await asyncio.wait_for(collect(engine, ask()), 30)

    assert runner.run(leave())[-1].finish_reason in ("stop", "length")


def test_a_deadline_ends_the_reply_with_timeout(engine, runner):
    request = GenerateRequest("tiny", ask().prompt, Sampling(max_new_tokens=400, ignore_eos=True), deadline_s=0.0)
    assert runner.run(collect(engine, request))[-1].finish_reason == "timeout"


def test_the_header_tells_context_vocabulary_and_cache(gguf_path):
    shape = read_shape(gguf_path)
    assert shape.context == 512
    assert shape.vocab_size > 300
    assert shape.bytes_per_token == 2 * 2 * 2 * 8 * 2  # layers, key and value, heads, their width, fp16


def test_a_stopped_engine_refuses(gguf_path, runner):
    words = [f"model_name_or_path={gguf_path}", "template=chatml", "infer_backend=gguf"]
    other = GgufEngine.from_recipe(load_recipe(words, "api"))
    with pytest.raises(EngineUnavailable, match="the gguf engine is not started"):
        runner.run(collect(other, ask()))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model_name_or_path={dir}"], "infer_backend: gguf serves a .gguf file"),
        (["model_name_or_path={gguf}", "adapters={{a: {dir}}}"], "infer_backend: gguf serves none"),
    ],
)
def test_what_cannot_be_served_is_said_before_loading(gguf_path, tiny_model_dir, more, said):
    words = [word.format(dir=tiny_model_dir, gguf=gguf_path) for word in more]
    with pytest.raises(RecipeError, match=said):
        GgufEngine.from_recipe(load_recipe([*words, "template=chatml", "infer_backend=gguf"], "api"))
