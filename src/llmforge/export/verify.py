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
from llmforge.model.adapters import decoder_layers
from llmforge.model.sources import say

MAX_DIFFERENCE_FP32 = 1e-4  # of two logits, with weights in fp32
NUM_ROWS = 2  # training rows used as prompts
MAX_PROMPT_TOKENS = 256  # of a row whose logits are compared; its ids are compared whole
MAX_POSITIONS = 64  # whose logits are kept: 64 x 150,000 tokens in float64 are 77 MB a row
NUM_REPLY_TOKENS = 8
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
class Rehearsal:
    """What base and adapter compute: a greedy reply to the first prompt, and logits of the last positions of every row.

    Attributes:
        rows: ids of each prompt, the first with its reply behind it.
        logits: (T, V) of each row, T at most MAX_POSITIONS, float64 on the CPU.
        num_reply: tokens of the reply.
    """

    rows: list[list[int]]
    logits: list[torch.Tensor]
    num_reply: int


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
def rehearse(model: Any, prompts: list[Prompt]) -> Rehearsal:
    """Let base and adapter answer, to compare with."""
    rows = [prompt.ids[-MAX_PROMPT_TOKENS:] for prompt in prompts]
    with computing_in_fp64(model):
        rows[0] = _greedy(model, rows[0])
        return Rehearsal(rows, _logits(model, rows), NUM_REPLY_TOKENS)


def verify(
    folder: Path, dtype: torch.dtype, device: torch.device, prompts: list[Prompt], expected: Rehearsal
) -> dict[str, Any]:
    """Load `folder` with transformers alone and compare; the numbers are printed and returned for the manifest.

    Raises:
        RunError: other prompt ids, or with fp32 weights logits that differ by more than rounding.
    """
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt in prompts:
        _compare_ids(prompt, tokenizer)
    print(f"prompt ids through the written chat template: equal for {len(prompts)} prompts")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode(), computing_in_fp64(model.to(device).eval()):
        found = _logits(model, expected.rows)
    pairs = list(zip(found, expected.logits, strict=True))
    difference = max((a - b).abs().max().item() for a, b in pairs)
    positions = sum(len(a) for a in found)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    # The reply is what base and adapter find likeliest, token by token; when the merged model does too, it is the same.
    reply = torch.tensor(expected.rows[0][-expected.num_reply :])
    like = "same" if torch.equal(found[0][-expected.num_reply - 1 : -1].argmax(-1), reply) else "another"
    precision = str(dtype).removeprefix("torch.")
    print(f"logits, merged against base and adapter: max difference {difference:.2e} (weights in {precision})")
    print(f"greedy tokens: equal at {same} of {positions} positions, {like} reply of {expected.num_reply} tokens")
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
def computing_in_fp64(model: Any) -> Iterator[None]:
    """Inside, the model computes in float64; its weights are widened one layer at a time.

    fp32 arithmetic alone moves logits of SmolLM2-135M by 1e-4 (160 tokens, against float64), as much as is allowed for
    the merged weights, which differ by 1.4e-5 then.
    """
    kept: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter not in kept:
                kept[parameter] = parameter.data
                parameter.data = parameter.data.double()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    blocks = _blocks(model)
    handles = [block.register_forward_pre_hook(widen) for block in blocks]
    handles += [block.register_forward_hook(restore, always_call=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: Any) -> list[nn.Module]:
    """The decoder layers, and whatever stands beside them: embeddings, last norm, output head."""
    layers = decoder_layers(model)
    around = [module for module in model.modules() if any(part is layers for part in module.modules())]
    beside = [child for module in around for child in module.children() if not any(child is one for one in around)]
    return [*layers, *beside]


def _logits(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    device = next(model.parameters()).device
    tensors = [torch.tensor([row], device=device) for row in rows]
    return [model(input_ids=ids, use_cache=False).logits[0, -MAX_POSITIONS:].double().cpu() for ids in tensors]


def _greedy(model: Any, row: list[int]) -> list[int]:
    device = next(model.parameters()).device
    given, past = torch.tensor([row], device=device), None
    for _ in range(NUM_REPLY_TOKENS):
        out = model(input_ids=given, past_key_values=past, use_cache=True)
        given, past = out.logits[:, -1:].argmax(-1), out.past_key_values
        row = [*row, int(given)]
    return row


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
