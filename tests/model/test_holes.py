"""Freed memory is given back within a pass, and the pass computes what it computed."""

import copy
import subprocess
import sys

import pytest
import torch

from llmforge.model.holes import give_back_holes

SHRINKS = """
import psutil, torch
from torch import nn
from llmforge.model.holes import give_back_holes

resident = lambda: psutil.Process().memory_info().rss
pins = []

class LeavesAHole(nn.Linear):
    def forward(self, x):
        blocks = [torch.ones(1 << 18) for _ in range(200)]  # 1 MiB each
        pins.append([torch.ones(1024) for _ in range(50)])  # above them in the heap, so it cannot shrink from its end
        return super().forward(x)

torch.ones(1 << 22)  # 16 MiB, freed at once: from now on glibc takes blocks of 1 MiB from the heap
layers = nn.ModuleList(LeavesAHole(4, 4) for _ in range(2))
x = torch.ones(1, 4)
layers[0](x), layers[1](x)
before = resident()
assert give_back_holes(layers)
layers[1](layers[0](x)).sum().backward()
print((before - resident()) >> 20)
"""


def test_holes_in_the_heap_go_back_to_the_kernel():
    if sys.platform != "linux":
        pytest.skip("glibc only")
    done = subprocess.run([sys.executable, "-c", SHRINKS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150


def test_gradients_are_those_of_a_model_left_alone():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(5)))
    hooked = copy.deepcopy(plain)
    give_back_holes(torch.nn.ModuleList(hooked))
    for model in (plain, hooked):
        model(torch.ones(3, 8)).square().sum().backward()
    for mine, other in zip(hooked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
