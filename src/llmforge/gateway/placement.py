"""`num_gpus` of a worker: one replica per card when the model fits on one, else one over all of them."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError
from llmforge.gateway.table import WorkerEntry

# Beside the weights: KV cache, activations, the CUDA context. An estimate; it was not measured on a card.
ROOM_BESIDE_WEIGHTS = 1.25
SPLITS = ("vllm",)  # engines that lay one model over several cards


def place(weight_bytes: int, free_bytes: Sequence[int], num_gpus: int, can_split: bool) -> list[list[int]]:
    """Cards of each replica.

    Args:
        weight_bytes: of the model as it will lie on the card.
        free_bytes: of each card there is.
        num_gpus: cards to use.
        can_split: whether the engine can lay one model over several cards.

    Raises:
        ValueError: too few cards, or the model does not fit.
    """
    if num_gpus > len(free_bytes):
        raise ValueError(f"num_gpus is {num_gpus}, this machine has {len(free_bytes)}")
    cards = list(range(num_gpus))
    needed = weight_bytes * ROOM_BESIDE_WEIGHTS
    if all(free_bytes[card] >= needed for card in cards):
        return [[card] for card in cards]
    gib = f"{needed / 2**30:.1f} GiB are needed"
    if not can_split:
        raise ValueError(f"the model does not fit on one card ({gib}); infer_backend: vllm lays it over several")
    if min(free_bytes[card] for card in cards) * num_gpus < needed:
        raise ValueError(f"the model does not fit on {num_gpus} cards together ({gib})")
    return [cards]


def replicas(entries: Sequence[WorkerEntry]) -> list[WorkerEntry]:
    """The table's workers, those with `num_gpus` as one worker per replica with its cards.

    Raises:
        RecipeError: the cards or the model are not there, or do not fit.
    """
    found: list[WorkerEntry] = []
    for entry in entries:
        if not entry.num_gpus:
            found.append(entry)
            continue
        try:
            weight_bytes, engine = _model_of(entry)
            groups = place(weight_bytes, free_card_bytes(), entry.num_gpus, engine in SPLITS)
        except ValueError as error:
            raise RecipeError(f"workers: {entry.name}: {error}") from None
        for number, cards in enumerate(groups):
            name = entry.name if len(groups) == 1 else f"{entry.name}-{number}"
            run = (*entry.run, f"tensor_parallel_size={len(cards)}") if len(cards) > 1 else entry.run
            found.append(dataclasses.replace(entry, name=name, run=run, cards=",".join(map(str, cards))))
    return found


def _model_of(entry: WorkerEntry) -> tuple[int, str]:
    """Bytes of the weights on disk, which is what bf16 weights take on a card, and the engine."""
    from llmforge.model.sources import local_folder

    if not entry.run:
        raise ValueError("num_gpus needs run, so that the model's size is known; give command its own cards")
    recipe = load_recipe(entry.run, "api")
    folder = local_folder(recipe.model)
    if folder is None:
        raise ValueError(
            f"{recipe.model.model_name_or_path} is not on this machine yet; forge-cli models get fetches it"
        )
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")), recipe.serve.infer_backend


def free_card_bytes() -> list[int]:
    """Free memory of each card; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return [int(line) * 2**20 for line in said.stdout.split() if line.isdecimal()]
