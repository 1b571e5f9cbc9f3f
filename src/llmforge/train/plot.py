"""training_loss.png: the logged loss, smoothed, and the loss on held-out rows."""

from __future__ import annotations

import json

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
    train = [(line["current_steps"], line["loss"]) for line in lines if line.get("loss") is not None]
    held_out = [(line["current_steps"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3)
        axes.plot(steps, smooth(list(losses)), color="tab:blue", label="loss")
    if held_out:
        steps, losses = zip(*held_out, strict=True)
        axes.plot(steps, losses, color="tab:orange", marker="o", label="eval_loss")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    if train or held_out:
        axes.legend()
    figure.savefig(run.plot_path, dpi=120)
    return None


def smooth(values: list[float]) -> list[float]:
    """Running mean with exponential weights, started at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(SMOOTHING * smoothed[-1] + (1 - SMOOTHING) * value if smoothed else value)
    return smoothed
