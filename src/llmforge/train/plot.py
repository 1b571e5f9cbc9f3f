"""training_loss.png: the logged loss, smoothed, and the loss on held-out rows; of PPO and GRPO reward and KL."""

from __future__ import annotations

import json
from typing import Any

from llmforge.runs import RunDir

SMOOTHING = 0.8  # share of the past in the running mean


def plot_loss(run: RunDir) -> str | None:
    """Draw the curve from trainer_log.jsonl; returns a notice when it could not be drawn."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return (
            "plot_loss: matplotlib is not installed (pip install 'llmforge[plot]'), so training_loss.png is not drawn"
        )
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in run.log_path.read_text(encoding="utf-8").splitlines()]
    # The loss of a policy that draws its own rows says nothing about how good it gets; its reward does.
    name = "reward" if any("reward" in line for line in lines) else "loss"
    train, held_out = _points(lines, name), _points(lines, f"eval_{name}")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if train:
        steps, values = zip(*train, strict=True)
        axes.plot(steps, values, color="tab:blue", alpha=0.3)
        axes.plot(steps, smooth(list(values)), color="tab:blue", label=name)
    if held_out:
        steps, values = zip(*held_out, strict=True)
        axes.plot(steps, values, color="tab:orange", marker="o", label=f"eval_{name}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats" if name == "loss" else "reward")
    if train or held_out:
        axes.legend()
    if kl := _points(lines, "kl"):
        steps, values = zip(*kl, strict=True)
        beside = axes.twinx()
        beside.plot(steps, values, color="tab:grey", linestyle="--")
        beside.set_ylabel("KL, nats per reply (dashed)")
    figure.savefig(run.plot_path, dpi=120)
    return None


def _points(lines: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the lines that have the value."""
    return [(line["current_steps"], line[name]) for line in lines if line.get(name) is not None]


def smooth(values: list[float]) -> list[float]:
    """Running mean with exponential weights, started at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * value if smoothed else value)
    return smoothed
