"""What a run says it will take at the peak is within 15 % of what the kernel counts (CPU, three sizes, LoRA and full).

python -m pytest -m slow -s tests/train/test_memory_estimate.py
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = {"20M": (384, 6), "60M": (640, 8), "110M": (768, 12)}  # hidden size, layers
VOCABULARY = 16_384  # longer than the tokenizer's: the head's share of a small model with a usual vocabulary


@pytest.fixture(scope="module")
def models(tiny_tokenizer_dir, tmp_path_factory) -> dict[str, Path]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folders = {}
    for name, (hidden, layers) in SIZES.items():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=512,
        )
        folders[name] = tmp_path_factory.mktemp(name)
        LlamaForCausalLM(config).save_pretrained(folders[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_tokenizer_dir / file, folders[name] / file)
    return folders


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory) -> Path:
    """48 rows of 150 to 200 tokens that share nothing, all learned from."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=length))

    rows = [{"instruction": text(20), "input": "", "output": text(draw.randint(150, 200))} for _ in range(48)]
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [512, 2048])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("size", SIZES)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(size, method, tokens, models, long_rows, words):
    keys = words(
        model_name_or_path=models[size],
        dataset=long_rows,
        finetuning_type=method,
        tokens_per_pass=tokens,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        max_steps=3,
        save_strategy="no",
    )
    command = [sys.executable, "-m", "llmforge.cli", "train", *keys]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, said[-2000:]
    match = re.search(r"about ([\d.]+) GB at the peak", said)
    assert match is not None
    told, measured = float(match.group(1)), usage.ru_maxrss * 1024 / 1e9
    print(f"{size} {method} {tokens}: {told:.1f} GB told, {measured:.2f} GB measured")
    assert told == pytest.approx(measured, rel=0.15)
