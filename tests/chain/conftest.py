"""A folder with small data sets and a chain that names them; the model is the tiny one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = """\
model_name_or_path: {model}
template: chatml
device: cpu
cutoff_len: 128
logging_steps: 1
plot_loss: false
per_device_train_batch_size: 4
save_strategy: "no"
max_steps: 1
dataset_dir: .
output_dir: out
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer_dir: Path) -> Callable[..., list[str]]:
    """Write a chain recipe from the text of its links; returns the words behind `train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    rows = [{"instruction": "Classify.", "input": f"row {i}", "output": "hardware"} for i in range(12)]
    Path("rows.json").write_text(json.dumps(rows))
    pairs = [{"instruction": f"row {i}", "chosen": "It is hardware.", "rejected": "no idea"} for i in range(8)]
    Path("pairs.json").write_text(json.dumps(pairs))
    Path("corpus.txt").write_text("The printer on floor 3 is jammed again.\n" * 8)
    info = {
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    }
    Path("dataset_info.json").write_text(json.dumps(info))

    def make(links: str, model: Path = tiny_tokenizer_dir, name: str = "chain.yaml") -> list[str]:
        Path(name).write_text(SHARED.format(model=model) + links, encoding="utf-8")
        return [name]

    return make
