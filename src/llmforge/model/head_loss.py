"""Cross-entropy through the output head, a chunk of states at a time, so that logits of all tokens never exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from llmforge.model.gemm import product

CHUNK_BYTES = 64 * 2**20  # logits held at a time, whatever the vocabulary; below 32 MB glibc would keep them


def chunk_rows(vocab: int) -> int:
    """States per chunk, so that its fp32 logits stay within CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocab))


def _chunk_losses(states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float) -> tuple:
    """Losses (n,) in nats and the log-softmax (n, vocab) of one chunk."""
    logits = product(states, weight)
    if bias is not None:
        logits += bias
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = torch.log_softmax(logits, -1)
    losses = -log_probs.gather(1, target[:, None])[:, 0]
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_probs.mean(-1)
    return losses, log_probs


def _logit_gradient(log_probs: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """d loss / d logits = softmax - wanted distribution, in place."""
    probs = log_probs.exp_()
    if smoothing:
        probs -= smoothing / probs.shape[1]
    probs[torch.arange(len(target), device=target.device), target] -= 1 - smoothing
    return probs


class _HeadLosses(Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float
    ) -> Tensor:
        losses = states.new_empty(len(target), dtype=torch.promote_types(states.dtype, torch.float32))
        d_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        # A trained head's gradient is a sum over states; made here with weight 1 each, right whenever the caller
        # weighs all alike, as every mean or sum does.
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for first in range(0, len(target), chunk_rows(len(weight))):
            part = slice(first, first + chunk_rows(len(weight)))
            losses[part], log_probs = _chunk_losses(states[part], weight, bias, target[part], smoothing)
            if d_states is None and d_weight is None and d_bias is None:
                continue
            grad = _logit_gradient(log_probs, target[part], smoothing).to(states.dtype)
            if d_states is not None:
                product(grad, weight.t(), out=d_states[part])
            if d_weight is not None:
                d_weight.addmm_(grad.t(), states[part])
            if d_bias is not None:
                d_bias += grad.sum(0)
        ctx.save_for_backward(states, weight, bias, target, d_states, d_weight, d_bias)
        ctx.smoothing = smoothing
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple:
        states, weight, bias, target, d_states, d_weight, d_bias = ctx.saved_tensors
        if d_states is not None:
            d_states = d_states * grad[:, None].to(d_states.dtype)
        if d_weight is not None or d_bias is not None:
            if len(grad) == 0 or bool((grad == grad[0]).all()):
                factor = grad[0] if len(grad) else 0.0
                d_weight = d_weight * factor if d_weight is not None else None
                d_bias = d_bias * factor if d_bias is not None else None
            else:
                d_weight, d_bias = _weighted_head_gradient(states, weight, bias, target, ctx.smoothing, grad)
        return d_states, d_weight, d_bias, None, None


def _weighted_head_gradient(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: float, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The head's gradient when states weigh differently (preference losses): logits are made once more."""
    d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias) if bias is not None else None
    for first in range(0, len(target), chunk_rows(len(weight))):
        part = slice(first, first + chunk_rows(len(weight)))
        _, log_probs = _chunk_losses(states[part], weight, bias, target[part], smoothing)
        weighted = (_logit_gradient(log_probs, target[part], smoothing) * grad[part, None]).to(states.dtype)
        d_weight.addmm_(weighted.t(), states[part])
        if d_bias is not None:
            d_bias += weighted.sum(0)
    return d_weight, d_bias


def head_losses(
    states: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each target under softmax(states @ weight.T + bias).

    The gradient of `states` is made in the forward pass, while a chunk's logits are there, so the backward pass costs
    no second product with the head.

    Args:
        states: (N, hidden). weight: (vocab, hidden). target: (N,) ids. bias: (vocab,) or None.
        smoothing: share of the wanted distribution spread evenly over the vocabulary.

    Returns:
        (N,) nats, fp32 or fp64.
    """
    return _HeadLosses.apply(states, weight, bias, target, smoothing)
