"""The faster product is the same product."""

import pytest
import torch

from llmforge.model.gemm import product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["by rows", "by columns"])
@pytest.mark.parametrize("shape", [(5, 12, 7), (1, 3, 1), (0, 4, 2)], ids=str)
def test_product_is_x_times_the_weight_turned(dtype, turned, shape):
    n, width, out = shape
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=draw, dtype=dtype)
    weight = torch.randn(width, out, generator=draw, dtype=dtype).t() if turned else torch.randn(
        out, width, generator=draw, dtype=dtype)  # fmt: skip
    expected = (x.double() @ weight.double().t()).to(dtype)
    torch.testing.assert_close(product(x, weight), expected)
    held = torch.full((n, out), 9.0, dtype=dtype)
    assert product(x, weight, out=held) is held
    torch.testing.assert_close(held, expected)


def test_a_slice_of_rows_is_read_and_written_in_place():
    x, weight, out = torch.arange(12.0).view(6, 2), torch.eye(2), torch.zeros(6, 2)
    product(x[2:4], weight, out=out[2:4])
    assert out.tolist() == [[0, 0], [0, 0], [4, 5], [6, 7], [0, 0], [0, 0]]
