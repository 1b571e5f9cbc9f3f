"""How the rows of a step go through the model: on lines of shared starts where that is exact, else padded.

What is chosen, and why, is one line of the log; what it saved is another (`tokens computed / tokens in rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled

from llmforge.config.schema import Recipe
from llmforge.data.example import Encoded
from llmforge.data.plan import lay_padded, lay_tree
from llmforge.data.prefix_tree import MIN_SHARED
from llmforge.errors import RecipeError
from llmforge.model.adapters import decoder_layers
from llmforge.model.arena import Arena
from llmforge.model.attention import runs_forest, supports_forest, use_forest_attention
from llmforge.model.forward import token_states
from llmforge.model.holes import give_back_holes
from llmforge.model.lean import take_lean_layers
from llmforge.model.memory import GB, PassMemory, measure_pass, memory_limit
from llmforge.train.steps import Line

ROUNDING = 64  # tokens; a budget that follows free memory to the byte would cut the same run differently each time


@dataclass(frozen=True)
class Batching:
    """The layout of a run's passes; `line` None means padded."""

    line: Line | None
    told: str  # for the log
    arena: Arena | None = None  # memory for what a pass keeps


def choose_batching(recipe: Recipe, model: Any, longest_row: int, tokens_before: int | None = None) -> Batching:
    """Prepare the model for the layout the recipe asks for, or for the best exact one.

    Args:
        model: the causal language model with its adapters, not yet wrapped by accelerate.
        longest_row: tokens of the longest training row.
        tokens_before: the budget of the run that is resumed, so that its passes are cut as they were.

    Raises:
        RecipeError: the recipe names a layout this model cannot run.
    """
    wanted = recipe.train.batching
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    lean = take_lean_layers(model)
    why_not = None if wanted == "padded" else _why_not(recipe, inner, model)
    if why_not and wanted in ("packed", "tree"):
        raise RecipeError(f"batching: {wanted!r} is not possible here: {why_not}. Set batching: padded")
    if wanted == "padded" or why_not:
        reason = f" ({why_not})" if why_not else ""
        return Batching(None, f"batching: padded, rows of similar length together{reason}; lean forms: {lean}")
    if recipe.train.deepspeed:  # the weights are not whole here, so a pass cannot be measured
        tokens, told, arena = (
            max(recipe.train.per_device_train_batch_size * longest_row, ROUNDING),
            "as a padded pass",
            None,
        )
    else:
        tokens, told, arena = _tokens_per_pass(recipe, model, longest_row, tokens_before)
    line = Line(tokens, share=wanted != "packed")
    kind = "tree, shared starts computed once" if line.share else "packed"
    return Batching(line, f"batching: {kind}, up to {tokens:,} tokens a pass ({told}); lean forms: {lean}", arena)


def _why_not(recipe: Recipe, inner: Any, model: Any) -> str | None:
    """None after the forest's attention was put behind the model and proven on it; else the reason in words."""
    if recipe.model.flash_attn not in ("auto", "disabled", "eager", "sdpa"):
        return f"flash_attn: {recipe.model.flash_attn} was asked for"
    if reason := supports_forest(inner):
        return reason
    if is_deepspeed_zero3_enabled():
        return "ZeRO-3 has the weights in pieces, on which the layout cannot be proven"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "virtual tokens stand before each row; chat, predict, api and export do not take such an adapter"
    if recipe.train.neftune_noise_alpha:
        return "neftune_noise_alpha scales its noise by the length of a padded row"
    config = inner.config.get_text_config()
    dropouts = [name for name in ("attention_dropout", "attn_pdrop") if getattr(config, name, 0)]
    if dropouts:
        return f"{type(inner).__name__} drops attention weights ({dropouts[0]} in its config.json)"
    before = inner.config._attn_implementation
    use_forest_attention(inner)
    if not _is_exact(model, config.vocab_size):
        inner.set_attn_implementation(before)
        return f"{type(inner).__name__} gives other states with shared starts than without"
    return None


@torch.no_grad()
def _is_exact(model: Any, vocab_size: int) -> bool:
    """Whether three short rows with a common start have the hidden states they have when padded."""
    draw = np.random.default_rng(0)
    start = draw.integers(0, vocab_size, MIN_SHARED).tolist()
    rows = [Encoded(ids, ids) for ids in ([*start, *draw.integers(0, vocab_size, n).tolist()] for n in (2, 6, 4))]
    training = model.training
    model.eval()
    tree, padded = lay_tree(rows, range(3)), lay_padded(rows, range(3))
    got, expected = (token_states(model, batch).float().cpu() for batch in (tree, padded))
    model.train(training)
    # Row by row; inside a row the targets come in their order in both layouts.
    by_row = [np.argsort(batch.rows[batch.row], kind="stable") for batch in (tree, padded)]
    tolerance = 1e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 0.1
    return bool((got[by_row[0]] - expected[by_row[1]]).abs().max() <= tolerance * expected.abs().max())


def _tokens_per_pass(recipe: Recipe, model: Any, longest_row: int, before: int | None) -> tuple[int, str, Arena | None]:
    """The budget of a line, where it comes from, and the memory for what its passes keep."""
    memory, device = pass_memory(model), next(model.parameters()).device
    recomputes = recipe.train.gradient_checkpointing
    if recipe.train.tokens_per_pass != "auto":
        tokens, told = int(recipe.train.tokens_per_pass), "from the recipe"
    elif before is not None:
        tokens, told = before, "as before"
    else:
        limit, told = memory_limit(device, recipe.train.train_memory_gb), ""
        if memory.peak(longest_row) > limit and not recomputes:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            memory, recomputes = pass_memory(model), True
            told = "; activations are computed again, since the longest row needs it"
        tokens = max(memory.tokens_within(limit) // ROUNDING * ROUNDING, ROUNDING)
        if torch.distributed.is_initialized():  # the ranks' passes must be cut alike
            shared = torch.tensor(tokens, device=device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
            tokens = int(shared)
        told = f"{limit / GB:.1f} GB allowed{told}"
    longest = max(tokens, longest_row)
    # What is computed again would be kept twice.
    arena = Arena(int(memory.kept_per_token * longest)) if device.type == "cpu" and not recomputes else None
    if arena:
        give_back_holes(decoder_layers(model))
    return tokens, f"about {memory.peak(longest) / GB:.1f} GB at the peak, {told}", arena


def pass_memory(model: Any) -> PassMemory:
    """Measure what a pass of this model takes, with its adapters and in training mode."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    vocab_size = inner.config.get_text_config().vocab_size

    def forward(tokens: int) -> Tensor:
        ids = np.random.default_rng(0).integers(0, vocab_size, tokens).tolist()
        row = [Encoded(ids, ids)]
        return token_states(model, lay_tree(row, [0]) if runs_forest(inner) else lay_padded(row, [0]))

    model.train()
    return measure_pass(model, forward)
