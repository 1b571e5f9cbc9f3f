"""What decides a link's result, as names with values or content hashes: equal inputs need no second run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmforge.config.dump import recipe_values
from llmforge.config.keys import keys
from llmforge.config.schema import Recipe
from llmforge.data.files import data_files
from llmforge.data.registry import resolve_dataset
from llmforge.model.sources import local_folder
from llmforge.model.weights import fingerprint
from llmforge.runs import sha256_file

# Keys that say where a run writes and how it tells of itself; they change nothing in the result.
WITHOUT_EFFECT = frozenset(
    {"output_dir", "export_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "run_name", "plot_loss",
     "save_total_limit", "overwrite_cache", "cache_dir", "dataset_dir", "dataset", "eval_dataset",
     "model_name_or_path", "adapter_name_or_path", "reward_model"}
)  # fmt: skip
MADE = ("*.safetensors", "adapter_config.json", "predict_results.json", "generated_predictions.jsonl")


def inputs_of(recipe: Recipe) -> dict[str, str]:
    """Name -> value or hash: keys that differ from their default, data sets, templates, plugins, model and adapters."""
    found = {}
    for name, value in recipe_values(recipe).items():
        default = keys()[name].default if name in keys() else None
        if name not in WITHOUT_EFFECT and value != default:
            found[name] = _content(value)
    for key in ("dataset", "eval_dataset"):
        for name in getattr(recipe.data, key):
            found |= {f"{key} {part}": digest for part, digest in _data_set(name, recipe)}
    if recipe.model.model_name_or_path:
        found["model_name_or_path"] = _model(recipe)
    for number, adapter in enumerate(recipe.model.adapter_name_or_path):
        found[f"adapter_name_or_path {number}"] = _weights(adapter)
    reward_model = recipe_values(recipe).get("reward_model")
    if reward_model:
        found["reward_model"] = _weights(str(reward_model))
    return found


def made_by(folder: Path) -> dict[str, str]:
    """File -> sha256 of what a link leaves for others."""
    files = sorted({path for pattern in MADE for path in folder.glob(pattern)})
    return {path.name: sha256_file(path) for path in files}


def _content(value: Any) -> str:
    """A value; of files that it names their hashes too."""
    said = json.dumps(value, sort_keys=True, ensure_ascii=False)
    names = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
    files = [sha256_file(Path(name)) for name in names if name and "\0" not in name and Path(name).is_file()]
    return said + "".join(f" {digest[:16]}" for digest in files)


def _data_set(name: str | dict[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    entry = resolve_dataset(name, recipe.data.dataset_dir)
    about = json.dumps({**asdict(replace(entry, path=None)), "named": sorted(entry.named)}, sort_keys=True, default=str)
    yield entry.name, hashlib.sha256(about.encode()).hexdigest()
    for path in data_files(entry.path) if entry.path else []:
        yield str(path), sha256_file(path)


def _model(recipe: Recipe) -> str:
    folder = local_folder(recipe.model)
    if folder is None:
        return str(recipe.model.model_name_or_path)
    return json.dumps(made_by(folder)) if (folder / "train_results.json").is_file() else fingerprint(folder)


def _weights(name: str) -> str:
    folder = Path(name)
    return json.dumps(made_by(folder)) if folder.is_dir() else name
