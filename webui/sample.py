"""The sample project: a few of the data sets that come with Forge, and a recipe for them."""

from __future__ import annotations

import json
import shutil

from llmforge.config.paths import bundled
from llmforge.data.registry import INFO_NAME
from llmforge.datagen.register import add_entries
from llmforge.webui.board import Board
from llmforge.webui.refusal import Refusal

SETS = ("report_classify_en_train", "report_classify_en_test", "report_classify_zh_train", "report_classify_zh_test")
FIRST = {"en": "report_classify_en_train", "zh": "report_classify_zh_train"}
RECIPE = "classify_lora.yaml"


def add_sample(board: Board) -> list[str]:
    """Copy the sample data sets and their recipe into the project; names that were added. What is there stays.

    Raises:
        RecipeError: the files did not come with this installation, or the project's registry is wrong.
    """
    source = bundled("data")
    if source is None:
        raise Refusal("home.no_sample")
    entries = json.loads((source / INFO_NAME).read_text(encoding="utf-8"))
    board.data.mkdir(exist_ok=True)
    registry = board.data / INFO_NAME
    known = json.loads(registry.read_text(encoding="utf-8")) if registry.is_file() else {}
    new = {name: entries[name] for name in SETS if name not in known}
    for entry in new.values():
        kept = board.data / entry["file_name"]
        if not kept.exists():
            shutil.copyfile(source / entry["file_name"], kept)
    if new:
        add_entries(registry, new)
    recipe, place = bundled(f"recipes/{RECIPE}"), board.root / "recipes" / RECIPE
    if recipe is not None and not place.exists():
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(recipe, place)
    return list(new)
