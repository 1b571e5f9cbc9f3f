"""Models and adapters of Hugging Face and ModelScope: found among local files first, fetched when allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmforge.config.schema import ModelConfig
from llmforge.errors import RecipeError, require
from llmforge.model.cache import Say
from llmforge.model.weights import has_weights

# Everything a text model needs; Python files only when the recipe allows them to run.
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.md", "LICENSE*")
PICKLES = ("*.bin",)


def find(config: ModelConfig, name: str) -> Path | None:
    """The folder of a hub model among the local files, or None. Never on the net."""
    places = {"hf": _find_hf, "modelscope": _find_modelscope}
    for source in _sources(config):
        if folder := places[source](config, name):
            return folder
    return None


def fetch(config: ModelConfig, name: str, say: Say) -> Path:
    """The folder of a hub model with all its weights: local when complete, else downloaded (a broken download resumes).

    Raises:
        RecipeError: found nowhere; the message lists what was tried.
    """
    folder = find(config, name)
    if folder and has_weights(folder):
        return folder
    tried = [f"the folder {Path(name).absolute()}"]
    for source in _sources(config):
        cache = (_hf_cache if source == "hf" else _modelscope_cache)(config)
        tried.append(f"the files of {source} in {cache}" + (" (incomplete)" if folder else ""))
    if config.model_source != "local":
        fetchers = {"hf": _fetch_hf, "modelscope": _fetch_modelscope}
        # "auto" asks ModelScope only where its package is installed.
        for source in _sources(config):
            if config.model_source == "auto" and source == "modelscope":
                continue
            try:
                say(f"fetching {name} from {source}")
                return fetchers[source](config, name, None)
            except RecipeError:
                raise
            except Exception as error:
                # Both hubs raise dozens of types, from wrong names to refused connections; each becomes one line here.
                tried.append(f"{_address(config, source)} ({_first_line(error)})")
    raise RecipeError(
        f"model_name_or_path: {name!r} was not found. Tried "
        + "; ".join(tried)
        + ". Give a local folder, set hub_mirror, "
        "or fetch it on a connected machine with `forge-cli models get`"
    )


def adapter_folder(config: ModelConfig, name: str, say: Say) -> Path:
    """The folder of an adapter: local, or inside a hub repository (`adapter_folder` names the folder in it).

    Raises:
        RecipeError: no adapter there; the message names what was tried.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / (config.adapter_folder or "")
        if (path / "adapter_config.json").is_file():
            return path
        hint = " It is a whole model; give it as model_name_or_path." if (path / "config.json").is_file() else ""
        raise RecipeError(f"adapter_name_or_path: {path} has no adapter_config.json.{hint}")
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise RecipeError(f"adapter_name_or_path: no folder at {name}")
    folder = find(config, name)
    if folder is None and config.model_source != "local":
        say(f"fetching the adapter {name}")
        source = "modelscope" if config.model_source == "modelscope" else "hf"
        fetcher = _fetch_modelscope if source == "modelscope" else _fetch_hf
        try:
            folder = fetcher(config, name, config.adapter_folder)
        except Exception as error:
            raise RecipeError(
                f"adapter_name_or_path: {name!r} is no local folder, and {_address(config, source)} gave: "
                f"{_first_line(error)}"
            ) from None
    if folder is None or not (folder / (config.adapter_folder or "") / "adapter_config.json").is_file():
        raise RecipeError(f"adapter_name_or_path: {name!r} holds no adapter_config.json")
    return folder / (config.adapter_folder or "")


def hub_models(config: ModelConfig) -> Iterator[tuple[str, str, Path]]:
    """(hub, name, folder) of every model among the local files of the hubs."""
    for repository in sorted(_hf_cache(config).glob("models--*")):
        for folder in sorted((repository / "snapshots").glob("*")):
            if (folder / "config.json").exists():
                yield "hf", repository.name.removeprefix("models--").replace("--", "/"), folder
    root = _modelscope_cache(config)
    for config_file in sorted([*root.glob("*/*/config.json"), *root.glob("models/*/*/config.json")]):
        folder = config_file.parent
        if not folder.parent.name.startswith("models--") and folder.parent.name != "snapshots":
            yield "modelscope", f"{folder.parent.name}/{folder.name.replace('___', '.')}", folder


def _sources(config: ModelConfig) -> tuple[str, ...]:
    return (config.model_source,) if config.model_source in ("hf", "modelscope") else ("hf", "modelscope")


def _address(config: ModelConfig, source: str) -> str:
    if source == "modelscope":
        return "modelscope.cn"
    return config.hub_mirror or os.environ.get("HF_ENDPOINT") or "huggingface.co"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hf_cache(config: ModelConfig) -> Path:
    """As huggingface_hub computes it, which takes a third of a second to import."""
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _find_hf(config: ModelConfig, name: str) -> Path | None:
    repository = _hf_cache(config) / f"models--{name.replace('/', '--')}"
    revision = config.model_revision
    reference = repository / "refs" / revision
    if reference.is_file():
        revision = reference.read_text(encoding="utf-8").strip()
    folder = repository / "snapshots" / revision
    return folder if any((folder / file).is_file() for file in ("config.json", "adapter_config.json")) else None


def _fetch_hf(config: ModelConfig, name: str, subfolder: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    options: dict[str, Any] = {"token": config.hf_hub_token, "endpoint": config.hub_mirror}
    # Asking for the repository first fails at once without a net, where the download would try again for half a minute.
    about = HfApi(**options).model_info(name, revision=config.model_revision, timeout=10)
    patterns = list(PATTERNS)
    if not any(file.rfilename.endswith(".safetensors") for file in about.siblings or ()):
        patterns += PICKLES
    if config.trust_remote_code:
        patterns.append("*.py")
    if subfolder:
        patterns = [f"{subfolder}/{pattern}" for pattern in patterns]
    cache = str(_hf_cache(config))
    return Path(
        snapshot_download(name, revision=config.model_revision, cache_dir=cache, allow_patterns=patterns, **options)
    )


def _modelscope_cache(config: ModelConfig) -> Path:
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub").expanduser()


def _find_modelscope(config: ModelConfig, name: str) -> Path | None:
    # ModelScope writes a dot of a name as three underscores; newer versions put models into their own folder.
    owner, _, model = name.rpartition("/")
    for root in (_modelscope_cache(config), _modelscope_cache(config) / "models"):
        for spelled in (model, model.replace(".", "___")):
            folder = root / owner / spelled
            if owner and (folder / "config.json").is_file():
                return folder
    return None


def _fetch_modelscope(config: ModelConfig, name: str, subfolder: str | None) -> Path:
    modelscope = require("modelscope", "modelscope", "model_source: modelscope")
    patterns = [*PATTERNS, *PICKLES, *(("*.py",) if config.trust_remote_code else ())]
    if subfolder:
        patterns = [f"{subfolder}/{pattern}" for pattern in patterns]
    # ModelScope's main branch is called master.
    revision = None if config.model_revision == "main" else config.model_revision
    return Path(
        modelscope.snapshot_download(
            name, revision=revision, cache_dir=str(_modelscope_cache(config)), allow_file_pattern=patterns
        )
    )
