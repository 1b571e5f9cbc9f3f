"""The cache of converted models: each is made once, under a lock, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from llmforge.config.schema import ModelConfig
from llmforge.errors import RunError
from llmforge.runs import atomic_dir, atomic_write, sha256_file

MANIFEST = "conversion.json"
FORMAT = 1  # goes up when a conversion writes something else, so that older copies are made anew

Say = Callable[[str], None]


def cache_root(config: ModelConfig) -> Path:
    """`cache_dir` of the recipe, else $FORGE_HOME, else ~/.cache/forge."""
    return Path(config.cache_dir or os.environ.get("FORGE_HOME") or "~/.cache/forge").expanduser().absolute()


def conversion_dir(config: ModelConfig, name: str, identity: str) -> Path:
    """Where the converted form of `name` lies; `identity` is what a change of the source changes."""
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:]
    digest = hashlib.sha256(f"{FORMAT}:{identity}".encode()).hexdigest()[:10]
    return cache_root(config) / "models" / f"{slug}-{digest}"


def file_identity(path: Path) -> str:
    """Path, size and time of change: a file of gigabytes is not hashed at every start."""
    status = path.stat()
    return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"


def is_whole(folder: Path) -> bool:
    """Whether `folder` is a finished conversion whose files still have their sizes."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def convert_once(
    target: Path, source: dict[str, Any], build: Callable[[Path], dict[str, Any] | None], say: Say
) -> Path:
    """Return `target`, after letting `build` fill it if it is not there whole; other processes wait meanwhile.

    `source`, and what `build` returns, say in the folder's conversion.json where the files came from; their sizes and
    sha256 stand beside it.

    Raises:
        RunError: the cache cannot be written, or its disk is full.
    """
    if is_whole(target):
        return target
    try:
        return _convert(target, source, build, say)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{target} could not be made: {error}; cache_dir names another folder, where space is short"
        ) from None


def _convert(target: Path, source: dict[str, Any], build: Callable[[Path], dict[str, Any] | None], say: Say) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if is_whole(target):
            return target
        if target.exists():
            say(f"{target} is damaged; converting again")
        with atomic_dir(target) as folder:
            source = {**source, **(build(folder) or {})}
            files = {
                str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            atomic_write(
                folder / MANIFEST, json.dumps({"source": source, "files": files}, indent=2, ensure_ascii=False)
            )
    return target


def source_of(folder: Path) -> dict[str, Any] | None:
    """Where a converted folder came from, or None for a folder that was not converted."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
