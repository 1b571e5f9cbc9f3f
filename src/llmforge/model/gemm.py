"""The faster of torch's two fp32 matrix products on this processor.

torch multiplies by MKL, which runs its AVX2 kernels on an AMD processor even where that has AVX-512. oneDNN's kernels,
which torch carries for its compiler, take AVX-512 wherever it is: 10 to 13 % faster on a Zen 4 (measured, for shapes
of 500 to 2,500 tokens; docs/performance.md). The choice follows the processor and nothing else, so that the same run
gives the same bits twice.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor


@cache
def prefers_onednn() -> bool:
    """Whether this is an AMD processor with AVX-512 and torch was built with oneDNN."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.exists()
        and "AuthenticAMD" in cpuinfo.read_text()
    )


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x weight^T, without a gradient of its own.

    Args:
        x: (n, in). weight: (out, in), of any strides. out: (n, out), written to if given.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and len(x) and prefers_onednn():
        y = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return y if out is None else out.copy_(y)
    return torch.mm(x, weight.t(), out=out)
