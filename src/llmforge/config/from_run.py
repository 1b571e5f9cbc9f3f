"""A run folder, a checkpoint or an adapter instead of a recipe: the base, adapters and template it stands for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llmforge.config.given import COMMAND_LINE, Given
from llmforge.config.paths import looks_local
from llmforge.config.schema import Origin
from llmforge.config.sources import Sources
from llmforge.runs import read_manifest

USES_RESULT = ("predict", "chat", "api", "export")


def apply_run(sources: Sources, given: dict[str, Given], command: str) -> None:
    """Point model and adapters of `given` at the folder that was named, for commands that use a run's result."""
    if sources.run_dir:
        _set(given, "output_dir", sources.run_dir, Origin(f"run {sources.run_dir}"))
        if _from_file(given, "overwrite_output_dir"):
            del given["overwrite_output_dir"]  # it was said for the run's first start; now it would remove the run
    if command not in USES_RESULT:
        return
    for folder in sources.folders or ([sources.run_dir] if sources.run_dir else []):
        origin = Origin(f"run {folder}")
        kind = given["finetuning_type"].value if "finetuning_type" in given and sources.run_dir else None
        if kind in ("full", "freeze") or not (kind or (Path(folder) / "adapter_config.json").is_file()):
            _set(given, "model_name_or_path", folder, origin)
            if _from_file(given, "adapter_name_or_path"):
                del given["adapter_name_or_path"]
        else:
            _set(given, "adapter_name_or_path", [*_adapters_below(given), folder], origin)


def _adapters_below(given: dict[str, Given]) -> list[str]:
    """Adapters the run was trained on top of: all it was given when it began a new one, else all but the continued."""
    before = given["adapter_name_or_path"].value if "adapter_name_or_path" in given else []
    before = [part.strip() for part in before.split(",")] if isinstance(before, str) else list(before or [])
    new = "create_new_adapter" in given and given["create_new_adapter"].value is True
    return before if new else before[:-1]


def from_manifest(values: dict[str, Any], given: dict[str, Given]) -> dict[str, Given]:
    """Base model and template, where they were not given, from what lies beside the adapter or the model."""
    model, adapters = values.get("model_name_or_path"), values.get("adapter_name_or_path")
    folder = Path(adapters[-1] if adapters else model or "")
    if not (adapters or model) or not os.path.isdir(folder):
        return {}
    manifest = read_manifest(folder) or {}
    origin = Origin(f"manifest of {folder}")
    found = {}
    if not model:
        base = manifest.get("base_model") or _peft_base(folder)
        if base and looks_local(base) and not os.path.exists(Path(os.path.expanduser(base))):
            base = manifest.get("base_folder") or base
        if base:
            found["model_name_or_path"] = Given("model_name_or_path", base, origin)
    if "template" not in given and manifest.get("template"):
        found["template"] = Given("template", manifest["template"], origin)
    return found


def _peft_base(folder: Path) -> str | None:
    try:
        config: Any = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("base_model_name_or_path") if isinstance(config, dict) else None


def _set(given: dict[str, Given], key: str, value: Any, origin: Origin) -> None:
    """Set a key unless the command line did."""
    if key not in given or _from_file(given, key):
        given[key] = Given(key, value, origin)


def _from_file(given: dict[str, Given], key: str) -> bool:
    return key in given and given[key].origin != COMMAND_LINE
