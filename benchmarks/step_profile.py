"""Where a training step's time goes, beside what this processor could do at best, measured in the same run.

    python benchmarks/step_profile.py RECIPE [key=value ...]

The step is the recipe's first `per_device_train_batch_size * gradient_accumulation_steps` rows in one pass. The floor
is the pass's matrix products at the speed of a probe: the model's own widest product, alone, between two timed steps.
A product counts 2 n k m operations; attention counts what it reads of earlier tokens.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llmforge.config.load import load_recipe
from llmforge.data.build import build_data
from llmforge.data.plan import Batch, lay_tree
from llmforge.model.forward import token_losses
from llmforge.model.gemm import product
from llmforge.model.loading import load_model, load_text
from llmforge.model.sources import resolve_model
from llmforge.train.batching import choose_batching

STEPS = 3
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "mkldnn::_linear_pointwise"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
}


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def products(model: torch.nn.Module, batch: Batch) -> tuple[float, float]:
    """Operations of the pass's linear layers and of its output head.

    Forward, gradient of the input, and of the weight where it is trained; low-rank updates count like any layer.
    """
    head = model.get_output_embeddings()
    linear = 0
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head:
            linear += module.weight.numel() * (3 if module.weight.requires_grad else 2)
    heads = head.weight.numel() * (3 if head.weight.requires_grad else 2)
    return 2 * linear * batch.num_tokens, 2 * heads * len(batch.target)


def attended(model: torch.nn.Module, batch: Batch) -> float:
    """Operations of attention: two products forward and five backward over the pairs (token, earlier token)."""
    config = model.config.get_text_config()
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = int((batch.position_ids + 1).sum())  # a token reads as many as stand before it in its row, and itself
    return 7 * 2 * pairs * width * config.num_hidden_layers


def main(words: list[str]) -> None:
    recipe = load_recipe(words)
    tokenizer, template = load_text(recipe, resolve_model(recipe.model))
    data = build_data(recipe, tokenizer, template)
    model = load_model(recipe, for_training=True).model
    batching = choose_batching(recipe, model, int(data.train.lengths.max()))
    print(batching.told)
    rows = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    batch = lay_tree([data.train[i] for i in range(rows)], range(rows))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model

    def step() -> None:
        assert batching.arena is not None
        with batching.arena.open():
            token_losses(model, batch).sum().backward()

    weight = max((m.weight for m in inner.model.layers.modules() if type(m) is torch.nn.Linear), key=torch.numel)
    x = torch.randn(batch.num_tokens, weight.shape[1])
    work = 2 * batch.num_tokens * weight.numel()
    step()
    taken, speeds = [], []
    for _ in range(STEPS):
        taken.append(seconds(step))
        with torch.no_grad():
            speeds += [work / seconds(lambda: product(x, weight)) for _ in range(10)]
    speed, took = statistics.median(speeds), statistics.median(taken)
    linear, head = products(inner, batch)
    attention = attended(inner, batch)
    print(
        f"{rows} rows, {sum(data.train.lengths[:rows]):,} tokens in rows, {batch.num_tokens:,} computed, "
        f"{len(batch.target):,} learned; a step takes {took:.2f} s (forward and backward; median of {STEPS})\n"
        f"probe: {x.shape[0]:,} x {weight.shape[1]:,} x {weight.shape[0]:,} at {speed / 1e9:.0f} GFLOP/s"
    )
    for name, count in (("linear layers", linear), ("attention", attention), ("output head", head)):
        print(f"floor  {name:<18}{count / speed:6.2f} s  {count / speed / took:6.1%} of the step")
    floor = (linear + attention + head) / speed
    print(f"floor  {'all':<18}{floor:6.2f} s  {floor / took:6.1%}; the step takes {took / floor:.2f} times that")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    events = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    total = sum(events.values())
    left = total
    for name, keys in GROUPS.items():
        part = sum(events.get(key, 0.0) for key in keys)
        left -= part
        print(f"spent  {name:<18}{part:6.2f} s  {part / total:6.1%}")
    print(f"spent  {'everything else':<18}{left:6.2f} s  {left / total:6.1%}: norms, rotary positions, sums, copies")


if __name__ == "__main__":
    main(sys.argv[1:])
