"""`plugins: [my.py]`: Python files that add names to the tables of config/names.py and to the templates."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from llmforge.errors import ForgeError, RecipeError

_loaded: set[Path] = set()


def load_plugin(path: str) -> None:
    """Run a plugin once; a second recipe that names the same file finds its names registered.

    Raises:
        RecipeError: the file raises; with its own message.
    """
    file = Path(path).resolve()
    if file in _loaded:
        return
    name = f"llmforge_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ForgeError:
        raise
    except Exception as error:
        raise RecipeError(f"{path} failed: {type(error).__name__}: {error}") from error
    _loaded.add(file)
