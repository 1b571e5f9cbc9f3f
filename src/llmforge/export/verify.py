"""Does the written folder do what base and adapter did? Prompts through transformers, then logits and greedy tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from llmforge.config.schema import Recipe
from llmforge.data.example import Message
from llmforge.data.read import read_examples
from llmforge.data.registry import resolve_dataset
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError, RunError
from llmforge.model.sources import say

MAX_DIFFERENCE_FP32 = 1e-4  # of two logits, in fp32; the sum of a merged product differs by rounding alone
NUM_ROWS = 3  # training rows used as prompts
MAX_PROMPT_TOKENS = 512  # of the logits that are compared; ids are compared whole
NUM_REPLY_TOKENS = 16
FIXED = (
    (Message("user", "Hello! Who are you?"),),
    (Message("system", "Answer briefly."), Message("user", "水在什么温度结冰？")),
    (Message("user", "1 + 1 = ?"), Message("assistant", "2"), Message("user", "And twice that?  \n(only the number)")),
)


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the reply, and its ids as training had them."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    ids: list[int]


@dataclass(frozen=True)
class Answer:
    """What a model computes: logits (T, V) of a prompt's last positions, fp32 on the CPU, and a greedy reply's ids."""

    logits: torch.Tensor
    reply: list[int]


def prompts(recipe: Recipe, tokenizer: Tokenizer, template: Template) -> list[Prompt]:
    """Fixed conversations and a few rows of the training data; those the template refuses are left out.

    Raises:
        RecipeError: the template refuses all of them.
    """
    conversations = [(f"fixed {i}", messages, ()) for i, messages in enumerate(FIXED, 1)]
    found, reasons = [], []
    for name, messages, tools in [*conversations, *_rows(recipe)]:
        # Typed control tokens stay text with us; a jinja template cannot say that, so such a row proves nothing.
        if any(token in message.content for message in messages for token in tokenizer.controls):
            continue
        try:
            row = template.encode(tokenizer, messages, tools, add_generation_prompt=True)
        except RecipeError as error:
            reasons.append(str(error))
            continue
        found.append(Prompt(name, tuple(messages), tuple(tools), row.input_ids))
    if not found:
        raise RecipeError(f"template: no conversation to verify the export with: {reasons[0] if reasons else ''}")
    return found


@torch.inference_mode()
def answers(model: Any, prompts: list[Prompt]) -> list[Answer]:
    """Logits of each prompt, computed in fp32, and a greedy reply to the first."""
    device = next(model.parameters()).device
    found = []
    with computing_in_fp32(model):
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.ids[-MAX_PROMPT_TOKENS:]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0].float().cpu()
            reply = _greedy(model, ids) if i == 0 else []
            found.append(Answer(logits, reply))
    return found


def verify(
    folder: Path, dtype: torch.dtype, device: torch.device, prompts: list[Prompt], expected: list[Answer]
) -> dict[str, Any]:
    """Load `folder` with transformers alone and compare; the numbers are printed and returned for the manifest.

    Raises:
        RunError: other prompt ids, or in fp32 logits that differ by more than rounding.
    """
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt in prompts:
        _compare_ids(prompt, tokenizer)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    found = answers(model.to(device).eval(), prompts)
    difference = max((a.logits - b.logits).abs().max().item() for a, b in zip(found, expected, strict=True))
    same = sum((a.logits.argmax(-1) == b.logits.argmax(-1)).sum().item() for a, b in zip(found, expected, strict=True))
    positions = sum(len(a.logits) for a in found)
    precision = str(dtype).removeprefix("torch.")
    print(f"prompt ids through the written chat template: equal for {len(prompts)} prompts")
    print(f"logits, merged against base and adapter: max difference {difference:.2e} (weights in {precision})")
    like = "same" if found[0].reply == expected[0].reply else "another"
    print(f"greedy tokens: equal at {same} of {positions} positions, {like} reply of {NUM_REPLY_TOKENS} tokens")
    if not difference < (MAX_DIFFERENCE_FP32 if dtype == torch.float32 else float("inf")):
        raise RunError(
            f"export: logits differ by {difference:.2e}, allowed are {MAX_DIFFERENCE_FP32:.0e} in fp32; nothing is kept"
        )
    return {
        "prompts": [prompt.name for prompt in prompts],
        "prompt_ids_equal": True,
        "max_logit_difference": difference,
        "greedy_equal_share": same / positions,
        "greedy_reply_equal": like == "same",
        "precision": precision,
    }


@contextlib.contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """Inside, every layer computes in fp32; weights kept in 16 bits are widened one layer at a time."""
    kept: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                kept[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    owners = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    handles = [module.register_forward_pre_hook(widen) for module in owners]
    handles += [module.register_forward_hook(restore, always_call=True) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _greedy(model: Any, ids: torch.Tensor) -> list[int]:
    for _ in range(NUM_REPLY_TOKENS):
        following = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    return ids[0, -NUM_REPLY_TOKENS:].tolist()


def _compare_ids(prompt: Prompt, tokenizer: Any) -> None:
    messages = [_as_openai(message) for message in prompt.messages]
    options: dict[str, Any] = {"tools": list(prompt.tools)} if prompt.tools else {}
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids == prompt.ids:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(ids, prompt.ids, strict=False)) if a != b), min(len(ids), len(prompt.ids))
    )
    raise RunError(
        f"export: the written chat template gives other ids than training for {prompt.name}, from token {at}: "
        f"{tokenizer.decode(ids[at : at + 5])!r} instead of {tokenizer.decode(prompt.ids[at : at + 5])!r}"
    )


def _as_openai(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        wire["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if message.reasoning is not None:
        wire["reasoning_content"] = message.reasoning
    return wire


def _rows(recipe: Recipe) -> list[tuple[str, tuple[Message, ...], tuple[dict[str, Any], ...]]]:
    """The first training rows up to the reply; none when the data is not here any more."""
    found = []
    for name in recipe.data.dataset[:1]:
        try:
            entry = resolve_dataset(name, recipe.data.dataset_dir)
            examples, _ = read_examples(entry, stage="sft", max_samples=NUM_ROWS)
        except (RecipeError, OSError) as error:
            say(f"verifying with fixed prompts only; training rows cannot be read: {error}")
            continue
        for example in examples:
            messages = (
                example.messages[:-1] if example.messages[-1:] and example.messages[-1].role == "assistant" else ()
            )
            if messages:
                found.append((str(example.source), messages, example.tools))
    return found
