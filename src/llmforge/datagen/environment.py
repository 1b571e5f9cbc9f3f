"""Keys of teachers: from the environment, or from a .env file beside the recipe or in the working directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmforge.datagen.keys import DatasetRecipe
from llmforge.errors import RecipeError

LINE = re.compile(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*")


def secret(name: str, recipe: DatasetRecipe, where: str) -> str:
    """The value of a key; it is handed to the server and never shown or written.

    Raises:
        RecipeError: neither the environment nor a .env file has it.
    """
    if value := os.environ.get(name):
        return value
    folders = [*(Path(file).parent for file in recipe.files), Path()]
    for folder in folders:
        if value := _dotenv(folder / ".env").get(name):
            return value
    raise RecipeError(f"{where}.key_env: {name} is neither in the environment nor in a .env file beside the recipe")


def _dotenv(path: Path) -> dict[str, str]:
    """NAME=value lines; quotes around a value are taken off."""
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if (match := LINE.fullmatch(line)) and not line.lstrip().startswith("#"):
            value = match[2]
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[match[1]] = value[1:-1] if quoted else value
    return found
