"""The vllm engine: what it refuses before it starts; real replies where FORGE_VLLM_PYTHON names an interpreter."""

from __future__ import annotations

import asyncio
import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmforge.config.load import load_recipe
from llmforge.data.example import Message
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError, RunError
from llmforge.infer.protocol import Conversation, GenerateRequest, RequestError, Sampling, TokenIds
from llmforge.infer.vllm import VllmEngine, unservable

LORA = {"peft_type": "LORA", "r": 8, "bias": "none", "target_modules": ["q_proj"]}
PROMPTS = ("The printer on floor 3 is jammed.", "打印机卡纸了", "Please reset my password, I cannot log in.")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"peft_type": "IA3"}, "peft_type IA3 is not LORA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head']"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias all"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern: ranks differ between layers"),
        ({"r": 600}, "lora_rank 600 is above 512"),
        ({"target_modules": ["lm_head", "q_proj"]}, "it changes the embeddings or the head"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_told_by_its_setting(tmp_path, more, reason):
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA | more))
    assert unservable(tmp_path) == reason


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs vllm_python"),
        (["vllm_python=/no/python"], "vllm_python: /no/python is no program"),
        (["base_url=ftp://x"], "base_url: got 'ftp://x'"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(tiny_model_dir, words, said):
    given = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "infer_backend=vllm", *words]
    with pytest.raises(RecipeError, match=said):
        VllmEngine.from_recipe(load_recipe(given, "api"))


def test_the_command_names_base_adapters_and_the_rank_they_need(tiny_model_dir, tmp_path):
    import sys

    given = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "infer_backend=vllm"]
    recipe = load_recipe([*given, f"vllm_python={sys.executable}", "vllm_args=[--enforce-eager]"], "api")
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA | {"r": 12}))
    words = VllmEngine(recipe, tiny_model_dir, {"sorter": tmp_path}, "base").command(7000)
    assert words[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert words[words.index("--lora-modules") + 1] == f"sorter={tmp_path}"
    assert words[-1] == "--enforce-eager"


def test_a_child_that_ends_is_told_with_its_last_lines(tiny_model_dir, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no module named vllm\nexit 3\n")
    program.chmod(0o755)
    given = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "infer_backend=vllm", f"vllm_python={program}"]
    engine = VllmEngine.from_recipe(load_recipe(given, "api"))

    async def start():
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(RunError, match="vLLM ended while it started:\nno module named vllm"):
        asyncio.run(start())


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def wide_model_dir(tiny_tokenizer_dir, tmp_path_factory):
    """Two layers with heads of 64, since vLLM's attention on a CPU knows no narrow ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = len(load_tokenizer(tiny_tokenizer_dir))
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=size, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer_dir / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def adapter_dir(wide_model_dir, tmp_path_factory):
    """An adapter whose weights are large enough to change every reply."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(wide_model_dir), LoraConfig(r=8, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(wide_model_dir, adapter_dir, runner):
    python = os.environ.get("FORGE_VLLM_PYTHON")
    if not python:
        pytest.skip("FORGE_VLLM_PYTHON names no interpreter with vLLM")
    words = [
        f"model_name_or_path={wide_model_dir}", "template=chatml", "infer_backend=vllm", f"vllm_python={python}",
        "vllm_args=[--enforce-eager]", "device=cpu", "infer_dtype=float32", "kv_cache_gb=1", "served_model_name=tiny",
        f"adapters={{sorter: {adapter_dir}}}",
    ]  # fmt: skip
    engine = VllmEngine.from_recipe(load_recipe(words, "api"))
    runner.run(engine.start())
    yield engine
    runner.run(engine.stop())


def ask(text="hello", model="tiny", constraint=None, **sampling):
    prompt = Conversation((Message("user", text),))
    return GenerateRequest(model, prompt, Sampling(**{"temperature": 0.0, "max_new_tokens": 12} | sampling), constraint)


async def collect(engine, request):
    return [piece async for piece in engine.generate(request)]


def ids_of(pieces):
    return [id for piece in pieces for id in piece.token_ids]


@pytest.mark.peers
def test_greedy_replies_of_base_and_adapter_are_those_of_transformers(engine, runner, wide_model_dir, adapter_dir):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(wide_model_dir, dtype=torch.float32)

    async def all_at_once(model):
        return await asyncio.gather(*(collect(engine, ask(text, model, ignore_eos=True)) for text in PROMPTS))

    for name in ("tiny", "sorter"):
        model = base if name == "tiny" else PeftModel.from_pretrained(base, adapter_dir).eval()
        for text, pieces in zip(PROMPTS, runner.run(all_at_once(name)), strict=True):
            ids = runner.run(engine.tokenize(name, Conversation((Message("user", text),))))
            out = model.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12,
                do_sample=False, eos_token_id=[], pad_token_id=0,
            )  # fmt: skip
            assert ids_of(pieces) == out[0, len(ids) :].tolist()
            assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens) == (len(ids), 12)


@pytest.mark.peers
def test_vllm_honours_seeds_stops_logprobs_and_schemas(engine, runner):
    request = ask(temperature=1.5, seed=7, n=2, ignore_eos=True)
    runs = [runner.run(collect(engine, request)) for _ in range(2)]
    one, two = [[ids_of(piece for piece in run if piece.index == index) for index in range(2)] for run in runs]
    assert one == two
    assert one[0] != one[1]
    ids = ids_of(runner.run(collect(engine, ask(ignore_eos=True))))
    stopped = runner.run(collect(engine, ask(stop_ids=(ids[4],), ignore_eos=True)))
    assert ids_of(stopped) == ids[: ids.index(ids[4]) + 1]
    assert stopped[-1].finish_reason == "stop"
    pieces = runner.run(collect(engine, ask(logprobs=2, max_new_tokens=3, ignore_eos=True)))
    entries = [entry for piece in pieces for entry in piece.logprobs]
    assert [entry.token_id for entry in entries] == ids[:3]
    assert all(len(entry.top) == 2 and entry.logprob == pytest.approx(entry.top[0][2]) for entry in entries)
    schema = {"enum": ["leak", "noise"]}  # no place where a random model could write spaces for ever
    bound = runner.run(collect(engine, ask(constraint={"type": "json_schema", "schema": schema}, max_new_tokens=40)))
    assert json.loads("".join(piece.text for piece in bound)) in ("leak", "noise")
    with pytest.raises(RequestError, match="penalty_alpha: the vllm engine does not have it"):
        runner.run(collect(engine, ask(penalty_alpha=0.6, top_k=4)))
    with pytest.raises(RequestError, match="not served here; known: sorter, tiny"):
        runner.run(collect(engine, GenerateRequest("other", TokenIds((1,)))))
