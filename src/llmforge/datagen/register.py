"""dataset_info.json learns a data set: under a lock, as one atomic replacement, so parallel writers lose nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmforge.data.entry import read_entry
from llmforge.data.registry import INFO_NAME, load_registry, read_info
from llmforge.errors import RecipeError
from llmforge.runs import atomic_write

LOCK_WAIT_S = 60


def registry_path(registry: str | Path) -> Path:
    """The registry file that a folder or a file path means."""
    path = Path(registry)
    return path if path.suffix.lower() == ".json" and not path.is_dir() else path / INFO_NAME


def add_entries(registry: str | Path, entries: Mapping[str, Mapping[str, Any]], *, replace: bool = False) -> list[str]:
    """Add entries to a registry, which is made when it is not there; other entries keep their text and order.

    An entry that names the same file as before is renewed. Returns the names that were new.

    Args:
        entries: name -> entry as in dataset_info.json; `file_name` is relative to the registry's folder.
        replace: take over a name that stands for another file.

    Raises:
        RecipeError: a wrong entry, a broken registry, or a name taken by another file. Nothing is written then.
    """
    path = registry_path(registry)
    for name, entry in entries.items():
        read_entry(name, entry, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_WAIT_S):
        known = read_info(path) if path.is_file() else {}
        if known:
            load_registry(path)  # a registry that is wrong elsewhere is left for its owner to repair
        new = []
        for name, entry in entries.items():
            before = known.get(name)
            if before is None:
                new.append(name)
            elif before.get("file_name") != entry.get("file_name") and not replace:
                raise RecipeError(
                    f"{path}: {name!r} already stands for {before.get('file_name') or 'another source'}; "
                    "choose another name, or take it over: forge-cli data add NAME FILE --replace true"
                )
            known[name] = dict(entry)
        atomic_write(path, json.dumps(known, ensure_ascii=False, indent=2) + "\n")
    return new


def file_name_in(registry: str | Path, file: Path) -> str:
    """How an entry of the registry names a file: relative to the registry's folder, with forward slashes."""
    return Path(os.path.relpath(file.resolve(), registry_path(registry).parent.resolve())).as_posix()
