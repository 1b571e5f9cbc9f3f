"""The loss and gradient of an optimizer step do not depend on how the step is cut into passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as T

from llmforge.config.load import load_recipe
from llmforge.data.example import IGNORE, Encoded, EncodedSet
from llmforge.runs import RunDir
from llmforge.train.arguments import training_arguments
from llmforge.train.losses import LossSum
from llmforge.train.meter import Meter
from llmforge.train.stages.sft import SftStage
from llmforge.train.steps import StepPlan, StepShape
from llmforge.train.stop import StopSignal
from llmforge.train.trainer import ForgeTrainer

CUTS = [(8, 1), (4, 2), (2, 4), (1, 8)]


@pytest.fixture(scope="module")
def rows() -> EncodedSet:
    draw = np.random.default_rng(1)
    made = []
    for size, prompt in ((12, 5), (7, 3), (40, 15), (3, 1), (9, 2), (30, 29), (11, 4), (5, 2)):
        ids = draw.integers(3, 300, size).tolist()
        made.append(Encoded(ids, [IGNORE] * prompt + ids[prompt:]))
    return EncodedSet.of(made)


@pytest.fixture
def step(words, rows, tmp_path):
    """Loss and flat gradient of one optimizer step."""

    def go(rows_per_pass: int, passes: int, dtype=torch.float64, pack_to=None, stage=SftStage):
        torch.manual_seed(0)
        config = T.LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128,
        )  # fmt: skip
        model = T.LlamaForCausalLM(config).to(dtype)
        recipe = load_recipe(words(), "train")
        plan = StepPlan(rows, StepShape(rows_per_pass, passes), seed=1, pad_id=0, pack_to=pack_to)
        trainer = ForgeTrainer(
            model=model, args=training_arguments(recipe)[0], plan=plan, stage=stage(recipe), run=RunDir(tmp_path),
            stop=StopSignal(print, print), meter=Meter(), eval_sets={},
        )  # fmt: skip
        trainer.training_step(model, plan[0, 0])
        return trainer.meter, torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    return go


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("cut", CUTS[1:], ids=str)
def test_passes_do_not_change_the_step(step, cut, dtype, tolerance):
    whole, gradient = step(*CUTS[0], dtype)
    parts, other = step(*cut, dtype)
    assert parts.last_loss == pytest.approx(whole.last_loss, rel=tolerance)
    assert (other - gradient).norm() <= tolerance * gradient.norm()


def test_packing_does_not_change_the_step(step):
    whole, gradient = step(8, 1)
    packed, other = step(8, 1, pack_to=64)
    assert packed.last_loss == pytest.approx(whole.last_loss, rel=1e-9)
    assert (other - gradient).norm() <= 1e-9 * gradient.norm()


def test_the_loss_is_the_mean_over_supervised_tokens(step, rows):
    meter, _ = step(2, 4)
    assert meter.total_supervised == sum(int((np.array(row.labels)[1:] != IGNORE).sum()) for row in rows)
    assert meter.total_tokens == len(rows.input_ids)
    assert meter.last_loss == pytest.approx(np.log(300), rel=0.02)  # random weights know nothing


class OddTokens(SftStage):
    """Counts odd targets beside the loss."""

    def loss(self, model, batch):
        return LossSum(super().loss(model, batch).sum, {"odd": torch.tensor(float((batch.target % 2).sum()))})


def test_a_stage_s_metrics_are_means_over_the_same_tokens(step, rows):
    meter, _ = step(2, 4, stage=OddTokens)
    targets = np.concatenate([np.array(row.labels)[1:] for row in rows])
    targets = targets[targets != IGNORE]
    assert meter.take()["odd"] == pytest.approx((targets % 2).mean())
