"""Loss and gradient of rm, dpo and kto do not depend on layout, passes, order or ranks."""

import numpy as np
import pytest
import torch
import transformers

from llmforge.config.load import load_recipe
from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import IGNORE, Encoded, EncodedSet
from llmforge.data.groups import DESIRED, UNDESIRED, UNRELATED, fill_up, join_group
from llmforge.model.adapters import add_lora
from llmforge.model.attention import use_forest_attention
from llmforge.model.lean import take_lean_layers
from llmforge.train.stages.dpo import DpoStage
from llmforge.train.stages.kto import KtoStage
from llmforge.train.stages.rm import RmStage
from llmforge.train.steps import Line, StepPlan, StepShape

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
STAGES = {"rm": RmStage, "dpo": DpoStage, "kto": KtoStage}
CASES = [
    ("rm", {"rm_loss": "token"}), ("rm", {"rm_loss": "mean"}), ("rm", {"rm_loss": "end"}),
    ("dpo", {"pref_loss": "sigmoid", "pref_ftx": 0.3, "dpo_label_smoothing": 0.1}), ("dpo", {"pref_loss": "hinge"}),
    ("dpo", {"pref_loss": "ipo"}), ("dpo", {"pref_loss": "kto_pair", "pref_beta": 2.0}), ("dpo", {"pref_loss": "orpo"}),
    ("dpo", {"pref_loss": "simpo", "pref_ftx": 0.2}),
    ("kto", {"pref_beta": 2.0, "kto_chosen_weight": 0.7, "pref_ftx": 0.4}),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    model = add_lora(transformers.LlamaForCausalLM(config), FinetuneConfig(lora_rank=4), [])
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # starts at 0, where policy and reference are the same
            weight.data.normal_(std=0.2)
    model = model.double()
    take_lean_layers(model)
    use_forest_attention(model.get_base_model())
    return model.train()


def groups(stage, fill):
    """Prompts that share starts, scored lists of three, replies inside each other, verdicts."""
    draw = np.random.default_rng(1)
    start = draw.integers(3, 60, 24).tolist()
    found = []
    for number, length in enumerate((3, 9, 1, 6, 4, 7)):
        prompt = [*start, *draw.integers(3, 60, length).tolist()] if number % 3 else draw.integers(3, 60, 9).tolist()
        replies = [draw.integers(3, 60, n).tolist() for n in (5, 2, 4)]
        replies[2] = [*replies[0][:2], 7, 8]
        members = [Encoded(prompt + reply, [IGNORE] * len(prompt) + reply) for reply in replies]
        if stage == "kto":
            marks = [DESIRED if number % 2 else UNDESIRED, UNRELATED]
        else:
            marks = [2, 0, 1] if number == 1 else [1, 0]
        members = members[: len(marks)]
        found.append(join_group(fill_up(members, 0) if fill else members, marks))
    return EncodedSet.of(found)


@pytest.fixture
def make_stage(model, tmp_path):
    def make(name, keys):
        words = {"stage": name, "model_name_or_path": "a/b", "dataset": "x", "output_dir": tmp_path / "run", **keys}
        recipe = load_recipe([f"{key}={value}" for key, value in words.items()], "train")
        stage = STAGES[name](recipe)
        torch.manual_seed(0)
        stage.extend(model)
        if name == "rm":
            stage.head.double()
        return stage

    yield make
    if hasattr(model.get_base_model(), "value_head"):
        del model.get_base_model().value_head


def step(model, stage, rows, shape, line, seed=0):
    """Mean loss, metrics and every gradient of one optimizer step over all rows and all ranks."""
    model.zero_grad()
    batches = []
    for rank in range(shape.num_ranks):
        mine = StepShape(shape.rows_per_pass, shape.passes, shape.num_ranks, rank)
        plan = StepPlan(rows, mine, seed=seed, pad_id=0, line=line, shift=stage.shift, aside=stage.aside)
        assert plan.num_steps == 1
        batches += plan[0, 0]
    real = [batch for batch in batches if batch.num_rows]
    assert sorted({row for batch in real for row in batch.rows.tolist()}) == list(range(len(rows)))
    stage.begin_step(model, batches, lambda *values: list(values))
    count = sum(stage.count(batch) for batch in real)
    total, metrics = 0.0, {}
    for batch in batches:
        part = stage.loss(model, batch)
        loss = part.sum * float(batch.num_rows > 0) / count
        loss.backward()
        total += loss.item()
        if batch.num_rows:
            for name, value in part.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
    return total, metrics, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


LAYOUTS = [
    (StepShape(1, 6), None), (StepShape(3, 2), None), (StepShape(2, 1, 3), None), (StepShape(6, 1), Line(10_000, True)),
    (StepShape(6, 1), Line(70, True)), (StepShape(6, 1), Line(8, True)), (StepShape(3, 1, 2), Line(60, True)),
    (StepShape(3, 1, 4), Line(60, True)), (StepShape(6, 1), Line(10_000, False)), (StepShape(6, 1), Line(50, False)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_every_cut_of_a_step_is_the_same_step(name, keys, model, make_stage):
    rows = groups(name, fill=keys.get("rm_loss") == "token")
    stage = make_stage(name, keys)
    loss, metrics, gradients = step(model, stage, rows, StepShape(6, 1), None)
    assert any("lora" in name and gradient.abs().max() > 0 for name, gradient in gradients.items())
    for seed, (shape, line) in enumerate(LAYOUTS):
        other, others_metrics, others = step(model, stage, rows, shape, line, seed)
        assert other == pytest.approx(loss, rel=1e-9)
        assert others_metrics == pytest.approx(metrics, rel=1e-9, abs=1e-12)
        assert others.keys() == gradients.keys()
        for weight, gradient in gradients.items():
            assert (others[weight] - gradient).norm() <= 1e-8 * gradient.norm() + 1e-14, weight


def test_the_replies_to_a_prompt_share_it_in_one_pass():
    rows = groups("dpo", fill=False)
    (batch,) = StepPlan(rows, StepShape(6, 1), seed=0, pad_id=0, line=Line(10_000, True))[0, 0]
    lengths = [len(row.input_ids) for row in rows]
    assert batch.row_tokens == sum(lengths)
    assert batch.num_tokens < 0.6 * batch.row_tokens
    (row,) = StepPlan(EncodedSet.of([rows[1]]), StepShape(1, 1), seed=0, pad_id=0, line=Line(10_000, True))[0, 0]
    assert row.num_tokens == 24 + 9 + 5 + 2 + 4  # the prompt of 33 once, and three replies


def test_a_gradient_points_the_chosen_reply_up(model, make_stage):
    stage = make_stage("dpo", {})
    rows = groups("dpo", fill=False)
    before, _, gradients = step(model, stage, rows, StepShape(6, 1), Line(10_000, True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in gradients:
                weight -= 1e-3 * gradients[name]
    after, _, _ = step(model, stage, rows, StepShape(6, 1), Line(10_000, True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in gradients:
                weight += 1e-3 * gradients[name]
    assert after < before
