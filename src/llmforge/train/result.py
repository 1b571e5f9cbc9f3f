"""Saving what a finished training gives: checked, then put into the run folder file by file."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from safetensors import safe_open

from llmforge.config.schema import FinetuneConfig
from llmforge.errors import RunError
from llmforge.model.loading import LoadedModel
from llmforge.model.pissa import make_plain
from llmforge.runs import MANIFEST, RunDir, fsync_dir, settle_file
from llmforge.train.trainer import ForgeTrainer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def save_result(trainer: ForgeTrainer, loaded: LoadedModel, folder: RunDir, finetune: FinetuneConfig) -> None:
    """Weights, tokenizer and trainer state; all ranks take part, since ZeRO gathers the weights.

    Raises:
        RunError: the weights were not saved whole.
    """
    # The port is the same on all ranks; a process alone has its own id.
    temporary = folder.path / f".result.{os.environ.get('MASTER_PORT', os.getpid())}.tmp"
    trainer.save_model(str(temporary))
    if not trainer.args.should_save:
        return
    check_saved(temporary)
    make_plain(loaded.model, temporary, finetune)
    for name in TOKENIZER_FILES:
        if (loaded.tokenizer.folder / name).is_file() and not (temporary / name).exists():
            shutil.copyfile(loaded.tokenizer.folder / name, temporary / name)
    trainer.state.save_to_json(str(temporary / "trainer_state.json"))
    for beside in [path for path in temporary.iterdir() if path.is_dir()]:
        shutil.copyfile(folder.manifest_path, beside / MANIFEST)  # so that it finds base and template by itself
    move_files(temporary, folder.path)


def check_saved(folder: Path) -> None:
    """Make sure that what was saved is there and not empty: ZeRO-3 once wrote tensors of no elements.

    Raises:
        RunError: a tensor without elements, or all weights of an adapter are zero.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(f"save: {folder} holds no .safetensors file")
    anything = False
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                shape = tensors.get_slice(name).get_shape()
                if math.prod(shape) == 0:
                    raise RunError(f"save: {path}: {name} has shape {shape}; the weights were not gathered")
                anything = anything or bool(tensors.get_tensor(name).any())
    if not anything:
        raise RunError(f"save: {folder}: all weights are zero")


def move_files(temporary: Path, folder: Path) -> None:
    """Put the files of a finished save in their places, each in one step, weights last but for the index of shards.

    Folders in it, such as a critic's, go the same way, and first.
    """
    folder.mkdir(exist_ok=True)
    for path in [path for path in temporary.iterdir() if path.is_dir()]:
        move_files(path, folder / path.name)
    for path in temporary.iterdir():
        settle_file(path)
    for path in sorted(temporary.iterdir(), key=lambda p: (p.suffix == ".safetensors", p.name)):
        os.replace(path, folder / path.name)
    temporary.rmdir()
    fsync_dir(folder)
