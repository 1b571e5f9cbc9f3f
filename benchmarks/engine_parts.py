"""What adapters and JSON grammars cost the local engine: tokens per CPU second beside the base alone, in turn.

    OMP_NUM_THREADS=1 python benchmarks/engine_parts.py MODEL_FOLDER [--rounds 3] [--rows 32] [--dtype bfloat16]

The workload of the serving tables: different prompts of 250 characters, 20 greedy tokens out, no shared start. Adapters
are LoRA of rank 8 on all linear layers with random weights, so replies differ from the base's and none ends early.
Everything runs in this process on one thread; CPU time is counted, so other work on the machine matters less. For
another precision than fp32 the first line says how often its likeliest token is fp32's, along fp32's own replies.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from llmforge.data.example import Message
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.adapter_updates import read_updates
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.lean_layers import take_lean_forms
from llmforge.infer.local.lora_batch import AdapterBatch
from llmforge.infer.local.packed import Packing, pack
from llmforge.infer.protocol import Conversation, GenerateRequest, Sampling

NEW_TOKENS = 20
ADAPTERS = ("a1", "a2", "a3", "a4")
WORDS = ("printer", "network", "password", "invoice", "delivery", "weather", "floor", "meeting", "ticket", "refund")
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
INTENT = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["weather", "refund", "delivery", "other"]},
        "order_id": {"type": "string", "maxLength": 8},
        "urgent": {"type": "boolean"},
    },
    "required": ["intent", "order_id", "urgent"],
    "additionalProperties": False,
}


def prompts(count: int) -> list[str]:
    """Texts of 250 characters; no two begin alike."""
    texts = []
    for number in range(count):
        words = [WORDS[(number * 7 + i * i * (number + 3)) % len(WORDS)] for i in range(60)]
        texts.append(f"{number} {' '.join(words)}"[:250])
    return texts


def add_random_adapters(
    model: torch.nn.Module, folder: Path, batch: AdapterBatch, packing: Packing | None
) -> list[float]:
    """Write and read the adapters; seconds that each took to be read and served."""
    seconds = []
    for number, name in enumerate(ADAPTERS):
        torch.manual_seed(number)
        base = transformers.AutoModelForCausalLM.from_config(model.config)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        wrapped = peft.get_peft_model(base, config)
        wrapped.save_pretrained(folder / name)
        started = time.perf_counter()
        batch.add(name, read_updates(model, folder / name, packing))
        seconds.append(time.perf_counter() - started)
    return seconds


def requests(
    texts: list[str], names: tuple[str, ...], schema: dict | None = None, **sampling: int
) -> list[GenerateRequest]:
    """A request for each text, greedy, for the named models in turn."""
    settings = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": schema is None, **sampling}
    constraint = None if schema is None else {"type": "json_schema", "schema": schema}
    return [
        GenerateRequest(
            names[number % len(names)], Conversation((Message("user", text),)), Sampling(**settings), constraint
        )
        for number, text in enumerate(texts)
    ]


@torch.no_grad()
def agreement(model: Any, exact: Any, tokenizer: Any, texts: list[str]) -> tuple[int, float, float]:
    """Tokens of `exact`'s own greedy replies, the share at which `model` likes the same best, and the mean KL."""
    core = LocalCore(exact, tokenizer, get_template("auto", tokenizer), served={"base": ""})
    asked = requests(texts, ("base",), max_new_tokens=3 * NEW_TOKENS)
    same, divergence = [], []
    for request, (reply,) in zip(asked, core.generate_all(asked), strict=True):
        prompt = core.prepare(request).prompt_ids
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        wanted, got = (m(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1) for m in (exact, model))
        same.append(wanted.argmax(-1) == got.argmax(-1))
        divergence.append((wanted.exp() * (wanted - got)).sum(-1))
    return len(torch.cat(same)), float(torch.cat(same).float().mean()), float(torch.cat(divergence).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(given.model)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(given.model, dtype=getattr(torch, given.dtype)).eval()
    texts = prompts(given.rows)
    if given.dtype != "float32":
        count, share, divergence = agreement(model, load(given.model, dtype=torch.float32).eval(), tokenizer, texts)
        print(f"top-1 agreement with fp32 over {count} tokens: {share:.4f}, mean KL {divergence:.5f}")
    take_lean_forms(model)  # as it is served
    packing = pack(model)
    batch = AdapterBatch(model)
    with tempfile.TemporaryDirectory() as folder:
        seconds = add_random_adapters(model, Path(folder), batch, packing)
    print(f"an adapter is read and served within {max(seconds):.3f} s")
    names = {"base": "", **{name: name for name in ADAPTERS}}
    core = LocalCore(
        model, tokenizer, get_template("auto", tokenizer), served=names, adapters=batch, max_rows=given.rows
    )
    cases = {
        "base": requests(texts, ("base",)),
        "one adapter": requests(texts, ("a1",)),
        "four adapters": requests(texts, ADAPTERS),
        "base and four adapters": requests(texts, ("base", *ADAPTERS)),
        "JSON, free text inside": requests(texts, ("base",), TEXT),
        "JSON, an intent": requests(texts, ("base",), INTENT, max_new_tokens=60),
    }
    best: dict[str, tuple[float, float]] = {}
    for _ in range(given.rounds):
        for case, asked in cases.items():
            core.invalidate()
            started = time.process_time()
            replies = core.generate_all(asked)
            elapsed = time.process_time() - started
            tokens = sum(len(reply.token_ids) for group in replies for reply in group)
            if case == "JSON, an intent":
                for group in replies:
                    json.loads(group[0].text)
            best[case] = max(best.get(case, (0.0, 0.0)), (tokens / elapsed, len(asked) / elapsed))
    for case, (tokens, replies_) in best.items():
        share = tokens / best["base"][0]
        print(f"{case:25} {tokens:7.1f} tokens/s {replies_:6.2f} replies/s of CPU; {share:.3f} of the base's tokens")


if __name__ == "__main__":
    main()
