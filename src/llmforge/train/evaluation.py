"""Loss, perplexity and accuracy on held-out rows, over all ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmforge.data.example import EncodedSet
from llmforge.model.forward import token_scores
from llmforge.train.steps import StepPlan, StepShape

if TYPE_CHECKING:
    from llmforge.train.trainer import ForgeTrainer

EVAL_ROWS = 64  # rows among which an evaluation on lines looks for shared starts; the lines themselves stay in budget


class EvaluationAbandoned(Exception):
    """A stop signal came during an evaluation; saving matters more than its result."""


@torch.no_grad()
def evaluation_sums(trainer: ForgeTrainer, rows: EncodedSet) -> Tensor:
    """(3,) summed loss in nats, number predicted right, number of supervised tokens, over all ranks.

    Raises:
        EvaluationAbandoned: a stop signal came, in a run of one rank.
    """
    args, line = trainer.args, trainer.plan.line
    size = max(args.per_device_eval_batch_size, EVAL_ROWS if line else 0)
    shape = StepShape(size, 1, args.world_size, args.process_index)
    plan = StepPlan(rows, shape, seed=0, pad_id=trainer.plan.pad_id, line=line)
    model = trainer.model_wrapped
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for step in range(plan.num_steps):
        for batch in plan[0, step]:
            with trainer.compute_loss_context_manager():
                losses, right = token_scores(model, batch)
            if batch.num_rows:
                sums += torch.stack([losses.double().sum().cpu(), right.sum().cpu(), torch.tensor(len(losses))])
        if trainer.stop.received and args.world_size == 1 and trainer.is_in_train:
            raise EvaluationAbandoned
        trainer.meter.touch()
    return torch.tensor(trainer.sum_over_ranks(*sums.tolist()), dtype=torch.float64)


def evaluation_metrics(prefix: str, sums: Tensor, accuracy: bool) -> dict[str, float]:
    """Mean loss per supervised token, its exponential, and the share predicted right, under names with `prefix`."""
    loss, right, count = sums.tolist()
    mean = loss / max(count, 1)
    metrics = {f"{prefix}_loss": mean, f"{prefix}_perplexity": math.exp(min(mean, 700.0))}
    return metrics | ({f"{prefix}_accuracy": right / max(count, 1)} if accuracy else {})
