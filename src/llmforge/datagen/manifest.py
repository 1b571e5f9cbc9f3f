"""manifest.json of a data set at work: one section per stage, so that a row can be followed from slot to adapter."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmforge import __version__
from llmforge.datagen.keys import DatasetRecipe
from llmforge.runs import MANIFEST, atomic_write, sha256_file


def write_stage(folder: Path, stage: str, facts: dict[str, Any]) -> None:
    """Set one stage's section; those of other stages stay, also when several are written at once."""
    path = Path(folder) / MANIFEST
    with FileLock(path.with_name(f".{MANIFEST}.lock")):
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        manifest[stage] = {"llmforge": __version__, "finished_at": round(time.time(), 3), **facts}
        atomic_write(path, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")


def recipe_facts(recipe: DatasetRecipe) -> dict[str, Any]:
    """Name, seed and the recipe files with their sha256."""
    return {
        "name": recipe.name,
        "mode": recipe.mode,
        "seed": recipe.seed,
        "recipe": {str(path): sha256_file(Path(path)) for path in recipe.files if Path(path).is_file()},
    }
