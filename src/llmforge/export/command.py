"""`forge-cli export R`: merge, verify, say where the result is and what to try with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmforge.config.load import load_recipe
from llmforge.process import large_imports


def main(words: Sequence[str]) -> int:
    """Export as the recipe says; returns the exit code."""
    recipe = load_recipe(words, "export")
    for note in recipe.notes:
        print(note, file=sys.stderr)
    with large_imports():  # behind the load, so that a wrong recipe is refused before torch is read
        from llmforge.export.merge import export

    folder = export(recipe)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"written: {folder} ({size / 1e9:.2f} GB)")
    print("next:")
    print(f"  forge-cli chat model_name_or_path={folder}")
    print(f"  forge-cli api model_name_or_path={folder} port=8000")
    return 0
