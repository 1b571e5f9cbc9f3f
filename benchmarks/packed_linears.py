"""What packed weights do for the linear layers of a model: milliseconds of all layers, plain and packed in turn.

    OMP_NUM_THREADS=1 python benchmarks/packed_linears.py MODEL_FOLDER [--rows 1,4,8,16,32,64,128] [--rounds 9]

Every layer of the model is computed, so that the weights come from memory, as in a step; the shortest round counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import transformers
from torch import nn

from llmforge.infer.local.packed import PackedLinear


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", default="1,4,8,16,32,64,128")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).eval()
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    packed = [PackedLinear(layer) for layer in layers]
    print(f"{len(layers)} layers, {sum(layer.weight.numel() for layer in layers) / 1e6:.0f} million weights, {dtype}")
    for rows in map(int, given.rows.split(",")):
        inputs = {layer.in_features: torch.randn(rows, layer.in_features).to(dtype) for layer in layers}
        best = [float("inf")] * 2
        for _ in range(given.rounds):
            for place, forwards in enumerate((layers, packed)):
                started = time.perf_counter()
                for layer, forward in zip(layers, forwards, strict=True):
                    forward(inputs[layer.in_features])
                best[place] = min(best[place], 1000 * (time.perf_counter() - started))
        print(f"{rows:4} rows: plain {best[0]:7.1f} ms, packed {best[1]:7.1f} ms, {best[1] / best[0]:.2f}", flush=True)


if __name__ == "__main__":
    main()
