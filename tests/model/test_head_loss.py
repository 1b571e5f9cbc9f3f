"""Cross-entropy in chunks of the output head: the plain one's value and gradients, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F

from llmforge.model import head_loss
from llmforge.model.head_loss import chunk_rows, head_losses


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * 50 * 20)  # 20 states of a vocabulary of 50


def inputs(count=77, vocab=50, width=8):
    draw = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_()
        for shape in ((count, width), (vocab, width), (vocab,))
    )
    return states, weight, bias, torch.randint(vocab, (count,), generator=draw)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["equal", "different"])
def test_value_and_gradients_equal_the_plain_cross_entropy(small_chunks, smoothing, weights):
    states, weight, bias, target = inputs()
    per_state = torch.full((77,), 0.5).double() if weights == "equal" else torch.linspace(0, 1, 77).double()
    expected = F.cross_entropy(F.linear(states, weight, bias), target, reduction="none", label_smoothing=smoothing)
    got = head_losses(states, weight, target, bias=bias, smoothing=smoothing)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    for mine, his in zip(
        torch.autograd.grad((got * per_state).sum(), (states, weight, bias)),
        torch.autograd.grad((expected * per_state).sum(), (states, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(mine, his, atol=1e-12, rtol=0)


def test_fp32_errs_no_more_than_the_plain_form():
    states, weight, _, target = inputs(300, 5000, 64)
    exact = torch.autograd.grad(head_losses(states, weight, target).sum(), states)[0]

    def error(loss):
        small = states.detach().float().requires_grad_()
        (got,) = torch.autograd.grad(loss(small, weight.detach().float()).sum(), small)
        return ((got.double() - exact).norm() / exact.norm()).item()

    plain = error(lambda s, w: F.cross_entropy(s @ w.t(), target, reduction="none"))
    assert error(lambda s, w: head_losses(s, w, target)) <= 2 * plain + 1e-6


def test_no_supervised_states_give_no_losses():
    states, weight, bias, _ = inputs(0)
    losses = head_losses(states, weight, torch.zeros(0, dtype=torch.long), bias=bias)
    losses.sum().backward()
    assert losses.shape == (0,)
    assert weight.grad.abs().max() == 0


def test_chunks_shrink_as_the_vocabulary_grows():
    assert chunk_rows(50_000) * 50_000 * 4 <= head_loss.CHUNK_BYTES
    assert chunk_rows(10**9) == 16
