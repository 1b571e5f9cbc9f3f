"""Python code that comes with a model: run only when the recipe says so, and named before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmforge.config.schema import ModelConfig
from llmforge.errors import RecipeError
from llmforge.model.cache import Say
from llmforge.runs import sha256_file


def allow_remote_code(folder: Path, config: ModelConfig, say: Say) -> bool:
    """Whether transformers may run the model's own code; false wherever transformers has a class of its own.

    Raises:
        RecipeError: the model works only with its own code and `trust_remote_code` is false.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, auto_map = settings.get("model_type"), settings.get("auto_map") or {}
    except (OSError, ValueError, AttributeError):
        raise RecipeError(f"{folder / 'config.json'}: missing or no JSON object") from None
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if kind in CONFIG_MAPPING_NAMES:
        return False
    if not auto_map:
        raise RecipeError(f"model_name_or_path: {folder.name} is of type {kind!r}, which transformers does not know")
    files = sorted(folder.glob("*.py"))
    listed = (
        ", ".join(f"{path.name} (sha256 {sha256_file(path)[:12]})" for path in files) or "files of another repository"
    )
    if not config.trust_remote_code:
        raise RecipeError(
            f"model_name_or_path: {folder.name} ({kind}) runs only with Python code that comes with it: {listed}. "
            "Read it, then say trust_remote_code: true"
        )
    say(f"running code that comes with the model: {listed}")
    return True
