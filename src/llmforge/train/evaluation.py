"""The loss and the metrics of a stage on held-out rows, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from llmforge.data.example import EncodedSet
from llmforge.data.plan import Batch
from llmforge.train.steps import StepPlan, StepShape

if TYPE_CHECKING:
    from llmforge.train.trainer import ForgeTrainer

EVAL_ROWS = 64  # rows among which an evaluation on lines looks for shared starts; the lines themselves stay in budget


class EvaluationAbandoned(Exception):
    """A stop signal came during an evaluation; saving matters more than its result."""


Sums = dict[str, tuple[float, float]]  # name -> sum, and what its mean runs over; "loss" is one of them


@torch.no_grad()
def evaluation_sums(trainer: ForgeTrainer, rows: EncodedSet) -> Sums:
    """The stage's loss and metrics on the rows, over all ranks.

    Raises:
        EvaluationAbandoned: a stop signal came, in a run of one rank.
    """
    args, line, stage = trainer.args, trainer.plan.line, trainer.stage
    size = max(args.per_device_eval_batch_size, EVAL_ROWS if line else 0)
    shape = StepShape(size, 1, args.world_size, args.process_index)
    plan = StepPlan(rows, shape, seed=0, pad_id=trainer.plan.pad_id, line=line, shift=stage.shift, aside=stage.aside)
    model = trainer.model_wrapped
    model.eval()
    everything: Iterable[Batch] = (batch for step in range(plan.num_steps) for batch in plan[0, step])
    if stage.looks_ahead:
        everything = list(everything)
        stage.begin_step(model, everything, trainer.sum_over_ranks)
    found: dict[str, tuple[float, float]] = {}
    for batch in everything:
        with trainer.compute_loss_context_manager():
            part = stage.score(model, batch)
        if batch.num_rows:
            count = float(stage.count(batch))
            for name, value in {"loss": part.sum, **part.metrics}.items():
                total, over = found.get(name, (0.0, 0.0))
                found[name] = total + float(value), over + part.counts.get(name, count)
        if trainer.stop.received and args.world_size == 1 and trainer.is_in_train:
            raise EvaluationAbandoned
        trainer.meter.touch()
    return _over_ranks(trainer, found)


def _over_ranks(trainer: ForgeTrainer, found: Sums) -> Sums:
    if trainer.args.world_size == 1:
        return found
    names = sorted({name for share in gather_object([list(found)]) for name in share})  # a rank may have no rows
    flat = trainer.sum_over_ranks(*(number for name in names for number in found.get(name, (0.0, 0.0))))
    return {name: (flat[2 * i], flat[2 * i + 1]) for i, name in enumerate(names)}


def joined(parts: list[Sums]) -> Sums:
    """Sums over several sets."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: (
            sum(part[name][0] for part in parts if name in part),
            sum(part[name][1] for part in parts if name in part),
        )
        for name in names
    }


def evaluation_metrics(prefix: str, sums: Sums, per_token: bool) -> dict[str, float]:
    """Means under names with `prefix`, and the exponential of a loss per token."""
    metrics = {f"{prefix}_{name}": value / max(count, 1) for name, (value, count) in sums.items()}
    if per_token and "loss" in sums:
        metrics[f"{prefix}_perplexity"] = math.exp(min(metrics[f"{prefix}_loss"], 700.0))
    return metrics
