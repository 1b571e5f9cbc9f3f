"""A byte-level BPE that holds the control tokens of every template; made once a session, in a tenth of a second."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmforge.data.templates.find import TEMPLATES

SHARED = Path(__file__).parents[2] / "../shared/tokenizers"
SENTENCES = (
    "hello how are you today I am fine thanks Human Assistant User Bot system assistant",
    '{"name": "weather", "arguments": {"city": "x"}}',
    "你好，今天天气怎么样？我很好。打印机卡纸了。",
)
MORE = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<|eom_id|>",
    "<_end>",
)


def control_tokens() -> list[str]:
    marks = {mark for name in TEMPLATES for mark in TEMPLATES.get(name).marks}
    return sorted({*marks, *MORE, "<bos>", "<eos>", "<pad>"})


def write_tokenizer(folder: Path, **config: object) -> Path:
    """tokenizer.json and tokenizer_config.json with bos <bos>, eos <eos>, pad <pad>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in control_tokens()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **config}), encoding="utf-8")
    return folder


def as_dict(message: object) -> dict:
    """A Message as transformers' chat templates take it."""
    value: dict = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        value["reasoning_content"] = message.reasoning
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": c.name, "arguments": c.arguments},
                **({"id": c.id} if c.id else {}),
            }
            for c in message.tool_calls
        ]
    return value
