"""Batches through a causal language model: hidden states, losses and logprobs of supervised positions only.

The model is called through its own (possibly wrapped) forward, so that the hooks of DDP and DeepSpeed fire. A hook on
the input of the output head picks the supervised hidden states, so that logits of prompt tokens are never made, for
any architecture. A plain head then runs in chunks that make their gradient on the way (model/head_loss.py). Any other
head (sharded, adapted, with soft caps or scales behind it) runs as it is, in chunks that are computed again in the
backward pass; what the model does to its logits after the head is repeated there and checked at one position.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmforge.data.plan import Batch
from llmforge.errors import RecipeError
from llmforge.model.attention import ForestMask, no_mask, runs_forest
from llmforge.model.head_loss import head_losses

# Logits held at a time: 2^25 numbers are 128 MiB in fp32, a few hundred positions of a vocabulary of 100,000.
MAX_LOGITS = 1 << 25

OfLogits = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # (n, V) logits, (n,) targets -> tensors of length n


def token_states(model: nn.Module, batch: Batch) -> Tensor:
    """Hidden states, as the output head sees them, at the batch's supervised positions.

    Args:
        model: a causal language model, bare or wrapped (peft, DDP, DeepSpeed).

    Returns:
        (N, H), one state per entry of `batch.state`.
    """
    return _forward(model, batch, keep=1)[0]


def token_losses(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each target, (N,) in nats, at least in fp32.

    With `label_smoothing` e the target has weight 1 - e and all V tokens share e (Szegedy et al. 2016).
    """
    inner = causal_lm(model)
    if (head := _plain_head(inner)) is not None:
        states, logits = _forward(model, batch, keep=1)
        if _is_all_of_the_head(inner, head, states, logits):
            target = torch.from_numpy(batch.target).to(states.device)
            return head_losses(states, head.weight, target, bias=head.bias, smoothing=label_smoothing)

    def losses(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing),)

    return _over_logits(model, batch, losses)[0]


def token_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability of each target, (N,) in nats."""
    return -token_losses(model, batch)


def token_scores(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target, (N,) in nats, and whether it is the likeliest token, (N,) bool."""

    def scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets

    losses, correct = _over_logits(model, batch, scores)
    return losses, correct


def token_logprobs_and_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, (N,) each in nats."""

    def of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits, dim=-1)
        return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    logprobs, entropy = _over_logits(model, batch, of_logits)
    return logprobs, entropy


def greedy_gaps(model: nn.Module, batch: Batch) -> Tensor:
    """How far each target's log-probability lies below that of the likeliest token, (N,) nats; 0 where it is that."""

    def gaps(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (logits.amax(dim=-1) - logits.gather(1, targets[:, None])[:, 0],)

    return _over_logits(model, batch, gaps)[0]


def check_isolation(model: nn.Module) -> None:
    """Make sure that rows packed into one line do not see each other, by changing one row and watching the next.

    Raises:
        RecipeError: the model lets them; the message names it.
    """
    import numpy as np

    from llmforge.data.example import Encoded
    from llmforge.data.plan import lay_packed

    inner = causal_lm(model)
    draw = np.random.default_rng(0)
    vocabulary = inner.config.get_text_config().vocab_size
    first, other, watched = (draw.integers(0, vocabulary, 8).tolist() for _ in range(3))

    def states_after(row: list[int]) -> Tensor:
        rows = [Encoded(row, [-100] * len(row)), Encoded(watched, watched)]
        return token_states(model, lay_packed(rows, [0, 1]))

    training = model.training
    model.eval()
    with torch.no_grad():
        one, two = states_after(first).float(), states_after(other).float()
    model.train(training)
    if (one - two).abs().max() > 1e-4 * one.abs().max():
        name = type(inner).__name__
        raise RecipeError(f"packing: rows of one sequence see each other in {name}; set packing: false")


def _over_logits(model: nn.Module, batch: Batch, of_logits: OfLogits) -> tuple[Tensor, ...]:
    """Apply `of_logits` to the logits of all supervised positions, in as many chunks as MAX_LOGITS asks for."""
    inner = causal_lm(model)
    chunk = max(1, MAX_LOGITS // inner.config.get_text_config().vocab_size)
    whole = len(batch.state) <= chunk
    states, logits = _forward(model, batch, keep=None if whole else 1)
    targets = torch.from_numpy(batch.target).to(states.device)
    if whole:
        return of_logits(_at_least_fp32(logits), targets)

    head, after = inner.get_output_embeddings(), _after_head(inner)
    with torch.no_grad():  # autocast stays as it is, so the same numbers must come out
        again = after(head(states[:1]))
    if not torch.allclose(again.float(), logits.float(), rtol=1e-3, atol=1e-3):
        # The model does more to its logits than this file knows; take them whole from its own forward pass.
        states, logits = _forward(model, batch, keep=None)
        return of_logits(_at_least_fp32(logits), targets)

    def of_chunk(states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return of_logits(_at_least_fp32(after(head(states))), targets)

    parts = [
        checkpoint(of_chunk, s, t, use_reentrant=False)
        for s, t in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _forward(model: nn.Module, batch: Batch, keep: int | None) -> tuple[Tensor, Tensor]:
    """One forward pass; the supervised states (N, H) and the logits of the first `keep` of them (None: of all)."""
    inner = causal_lm(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise RecipeError(f"{type(inner).__name__} has no output head; a causal language model is needed")
    device = _device(inner)
    index = torch.from_numpy(batch.state).to(device)
    caught: list[Tensor] = []

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # (B, T, H)
        width = batch.input_ids.shape[1]
        virtual = hidden.shape[1] - width  # tokens that prompt tuning puts before each line
        places = index + (index // width + 1) * virtual if virtual else index
        states = hidden.reshape(-1, hidden.shape[-1])[places]
        caught.append(states)
        return (states[:keep].unsqueeze(0), *args[1:])

    inputs: dict[str, Tensor] = {"input_ids": torch.from_numpy(batch.input_ids).to(device)}
    one_line = batch.input_ids.shape[0] == 1
    packed = one_line and len(batch.segments) > 1
    if one_line and runs_forest(inner):
        places = torch.from_numpy(batch.position_ids).to(device)
        forest = ForestMask.of(batch.segments, batch.position_ids)
        with _hook(head, pick), no_mask():
            output = model(**inputs, position_ids=places, forest=forest, use_cache=False)
        return caught[0], output.logits[0]
    if not packed:
        inputs["attention_mask"] = torch.from_numpy(batch.attention_mask).to(device, torch.long)
    if packed or _takes(type(inner), "position_ids"):
        # No mask when packed: transformers isolates rows where positions start again, unless a 2-D mask is given.
        inputs["position_ids"] = torch.from_numpy(batch.position_ids).to(device)
    if packed and not _takes(type(inner), "position_ids"):
        raise RecipeError(f"packing: {type(inner).__name__} takes no position_ids; set packing: false")
    with _hook(head, pick):
        output = model(**inputs, use_cache=False)
    if len(caught) != 1:
        raise RuntimeError(f"{type(inner).__name__} called its output head {len(caught)} times in one forward pass")
    return caught[0], output.logits[0]


def _plain_head(model: Any) -> nn.Linear | None:
    """The output head when it is one whole matrix and nothing comes after it."""
    head = model.get_output_embeddings()
    plain = type(head) is nn.Linear and not hasattr(head.weight, "ds_id") and _after_head(model) is _nothing
    return head if plain and head.weight.dtype in (torch.float32, torch.float64) else None


_proven: WeakSet[nn.Linear] = WeakSet()


def _is_all_of_the_head(model: nn.Module, head: nn.Linear, states: Tensor, logits: Tensor) -> bool:
    """Whether the model's logits are the head's product and no more; looked at once for each model."""
    if states.dtype != head.weight.dtype or torch.is_autocast_enabled(states.device.type):
        return False
    if head not in _proven and len(states):
        with torch.no_grad():
            if not torch.allclose(head(states[:1]), logits, rtol=1e-3, atol=1e-3):
                return False
        _proven.add(head)
    return True


@contextlib.contextmanager
def _hook(module: nn.Module, before: Callable):
    handle = module.register_forward_pre_hook(before, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _after_head(model: Any) -> Callable[[Tensor], Tensor]:
    """What the model's forward does to the head's output: scales of Cohere and Granite, the soft cap of Gemma 2."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if (scale, divisor, cap) == (None, None, None):
        return _nothing

    def after(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        return torch.tanh(logits / cap) * cap if cap is not None else logits

    return after


def _nothing(logits: Tensor) -> Tensor:
    return logits


def causal_lm(model: Any) -> Any:
    """The transformers model inside DDP, DeepSpeed, torch.compile and peft wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "get_output_embeddings"):
            model = model.module
        else:
            return model


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device


def _takes(model_class: Any, name: str) -> bool:
    return name in inspect.signature(model_class.forward).parameters
