"""Recipes of `kind: dataset` in a project, and the ones somebody can review."""

from __future__ import annotations

from pathlib import Path

from llmforge.config.kind import recipe_kind
from llmforge.data.files import kind_of
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.data_table import entries

FOLDERS = (".", "recipes", "recipes/data", "data", ".forge/make")
MOST = 200  # recipes looked at


def dataset_recipes(board: Board) -> list[str]:
    """Recipes that make data, as paths from the project folder."""
    found = []
    files = [path for folder in FOLDERS for path in sorted((board.root / folder).glob("*.yaml"))]
    for path in files[:MOST]:
        if "kind:" in path.read_text(encoding="utf-8", errors="replace") and recipe_kind([str(path)]) == "dataset":
            found.append(board.shown(path))
    return found


def reviewable(board: Board) -> list[str]:
    """What holds rows to review: recipes that accepted some, then the files of the project's data sets."""
    made = [name for name in dataset_recipes(board) if _has_rows(board, name)]
    try:
        files = [entry.path for entry in entries(board).values() if entry.path and entry.path.is_file()]
    except RecipeError:
        files = []  # the page Data says what is wrong with the registry
    inside = [board.shown(path) for path in files if kind_of(path) and path.resolve().is_relative_to(board.root)]
    return list(dict.fromkeys([*made, *inside]))


def _has_rows(board: Board, name: str) -> bool:
    try:
        folder = load_dataset_recipe([str(board.root / name)], "review").folder
    except RecipeError:
        return False
    return next((Path(board.root, folder) / "ok").glob("*.json"), None) is not None
