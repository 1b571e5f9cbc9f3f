"""What the training tests share: rows of different lengths, and a training run of the tiny model from a few keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXTS = (
    ("The printer on floor 3 is jammed again.", "hardware"),
    ("Please reset my password, I cannot log in. It worked before the weekend, and now nothing goes.", "account"),
    ("打印机卡纸了，请派人来修。", "hardware"),
    ("No.", "other"),
)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows in alpaca form, all different."""
    rows = [
        {"instruction": "Classify.", "input": f"{text} ({i})", "output": json.dumps({"label": label})}
        for i in range(5)
        for text, label in TEXTS
    ]
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def words(tiny_model_dir: Path, rows_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Words behind `forge-cli train`; keyword arguments change or add keys, `out` is the run folder's name."""

    def make(out: str = "run", **changes: Any) -> list[str]:
        keys = {
            "model_name_or_path": tiny_model_dir,
            "dataset": rows_file,
            "template": "chatml",
            "device": "cpu",
            "cutoff_len": 256,
            "cache_dir": tmp_path / "cache",
            "output_dir": tmp_path / out,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "save_steps": 100,
            "plot_loss": False,
            **changes,
        }
        return [f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in keys.items()]

    return make


@pytest.fixture
def train(words: Callable[..., list[str]]) -> Callable[..., Path]:
    """Train in this process; returns the run folder."""

    def go(out: str = "run", **changes: Any) -> Path:
        from llmforge.config.load import load_recipe
        from llmforge.train.run import run

        return run(load_recipe(words(out, **changes), "train"))

    return go


@pytest.fixture
def log_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Lines of a run's trainer_log.jsonl."""
    return lambda run: [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
