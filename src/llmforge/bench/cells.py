"""The cells of a benchmark and the command behind each: ours, or another trainer's with the same settings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmforge.bench.workload import DATASET, DataFolder
from llmforge.errors import RecipeError, nearest

FORGE = "forge"
PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z_]+)\}")
PLACEHOLDERS = (
    "data_dir", "dataset", "model", "output_dir", "rows", "steps", "batch", "accumulation", "cutoff", "method",
    "template", "config",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What is measured: everything that makes two runs comparable. `side` is "forge" or the other command's name."""

    workload: str
    model: str
    method: str
    length: int
    side: str
    batching: str
    rows: int  # per optimizer step
    batch: int  # per forward pass where batching is padded
    words: str = ""  # further key=value
    epochs: int = 1  # how often the rows come; above 1 the whole training is timed

    @property
    def opponent_key(self) -> tuple:
        """Equal for cells that do the same work, however they do it."""
        return (self.workload, self.model, self.method, self.length, self.rows, self.epochs)

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def accumulation(rows: int, batch: int) -> int:
    """Forward passes per optimizer step.

    Raises:
        RecipeError: the rows of a step are no multiple of a pass's.
    """
    if rows % batch:
        raise RecipeError(f"--rows: {rows} is no multiple of --batch {batch}")
    return rows // batch


def forge_command(cell: Cell, words: list[str], data: DataFolder, output: Path, steps: int) -> list[str]:
    """`forge-cli train` for a cell: what the recipe says, on the data of the benchmark, saving only the result."""
    keys: dict[str, object] = {
        "dataset": DATASET, "dataset_dir": data.path, "output_dir": output, "cutoff_len": cell.length,
        "finetuning_type": cell.method, "batching": cell.batching, "per_device_train_batch_size": cell.batch,
        "gradient_accumulation_steps": accumulation(cell.rows, cell.batch), "max_steps": steps, "logging_steps": 1,
    }  # fmt: skip
    fixed = {
        "eval_dataset": [], "val_size": 0, "max_samples": None, "do_train": True, "do_eval": False, "do_predict": False,
        "eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_steps": None, "save_strategy": "no",
        "plot_loss": False, "overwrite_cache": True, "disable_shuffling": True, "group_by_length": False,
        "packing": False,
    }  # fmt: skip
    if data.stage:
        keys["stage"] = data.stage
    made = [f"{key}={value}" for key, value in keys.items()]
    made += [f"{key}={json.dumps(value)}" for key, value in fixed.items()]
    return [sys.executable, "-m", "llmforge.cli", "train", *words, *made]


def peer_values(cell: Cell, data: DataFolder, output: Path, steps: int, model: str, template: str) -> dict[str, str]:
    """What the placeholders of --vs and --vs-config stand for, without {config}."""
    return {
        "data_dir": str(data.path), "dataset": DATASET, "model": model, "output_dir": str(output),
        "rows": str(cell.rows), "steps": str(steps), "batch": str(cell.batch),
        "accumulation": str(accumulation(cell.rows, cell.batch)), "cutoff": str(cell.length), "method": cell.method,
        "template": template,
    }  # fmt: skip


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of {name}; ${NAME} is left to the shell."""
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)


def check_placeholders(option: str, text: str, known: tuple[str, ...] = PLACEHOLDERS) -> None:
    """Raises RecipeError for a placeholder that nothing stands behind."""
    for name in PLACEHOLDER.findall(text):
        if name not in known:
            raise RecipeError(
                f"{option}: {{{name}}} is no placeholder.{nearest(name, known)} Known: {', '.join(known)}"
            )


def side_name(command: str) -> str:
    """The program of a shell line: its first word that is no assignment."""
    words = [word for word in command.split() if not re.match(r"\w+=", word)]
    return Path(words[0]).name if words else "peer"
