"""dataset_info.json: data sets described once, by name, in LLaMA-Factory's format; bare files and inline entries."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.data.entry import TOLERATED, DatasetEntry, read_entry
from llmforge.data.files import KINDS, kind_of
from llmforge.errors import RecipeError, nearest

INFO_NAME = "dataset_info.json"


def load_registry(dataset_dir: str | os.PathLike | Mapping[str, Any], *, hub: str = "auto") -> dict[str, DatasetEntry]:
    """Read and check all entries.

    Args:
        dataset_dir: a folder with dataset_info.json, that file itself, or its content as a mapping.
        hub: which hub an entry that names two is taken from: "hf", "modelscope", or "auto" (Hugging Face first).

    Raises:
        RecipeError: the registry is missing or broken; all wrong entries are listed together.
    """
    if isinstance(dataset_dir, Mapping):
        raw, folder, shown = dict(dataset_dir), Path(), "dataset_dir"
    else:
        path = _info_path(dataset_dir)
        raw, folder, shown = read_info(path), path.parent, str(path)
    entries, problems = {}, []
    for name, value in raw.items():
        if name in TOLERATED:
            continue
        try:
            entries[name] = read_entry(name, value, folder, hub=hub)
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n  ".join([f"{shown} has wrong entries:", *problems]))
    return entries


def resolve_dataset(
    dataset: str | Mapping[str, Any], dataset_dir: str | os.PathLike | Mapping[str, Any], *, hub: str = "auto"
) -> DatasetEntry:
    """The entry behind a registered name, a file or folder path, or an inline entry (a mapping, or its JSON text).

    A bare path is called by its file name without ending; its format is taken from its first rows.

    A registered name wins over a path. A path is looked up from the working directory, then in `dataset_dir`.

    Raises:
        RecipeError: nothing of that name; the message holds the nearest and the known names.
    """
    folder = Path() if isinstance(dataset_dir, Mapping) else _info_path(dataset_dir).parent
    if isinstance(dataset, str) and dataset.lstrip().startswith("{"):
        dataset = _inline(dataset)
    if isinstance(dataset, Mapping):
        return read_entry(str(dataset.get("file_name", "inline")), dataset, folder, hub=hub, beside_first=False)
    has_registry = isinstance(dataset_dir, Mapping) or _info_path(dataset_dir).is_file()
    entries = load_registry(dataset_dir, hub=hub) if has_registry else {}
    if dataset in entries:
        return entries[dataset]
    if "\0" not in dataset:
        for candidate in (Path(dataset), folder / dataset):
            if candidate.exists():
                return _bare(dataset, candidate)
    shown = "dataset_dir" if isinstance(dataset_dir, Mapping) else str(_info_path(dataset_dir))
    if not has_registry:
        raise RecipeError(f"dataset: {dataset!r} is not a file, and there is no {shown} that could describe it")
    known = ", ".join(sorted(entries)) or "none"
    if len(entries) > 30:
        known = f"{', '.join(sorted(entries)[:30])} and {len(entries) - 30} more"
    raise RecipeError(
        f"dataset: {dataset!r} is neither an entry of {shown} nor a file.{nearest(dataset, entries)} Known: {known}"
    )


def _bare(name: str, path: Path) -> DatasetEntry:
    if path.is_file() and kind_of(path) is None:
        raise RecipeError(
            f"dataset: {name!r}: files of this kind are not read. Known: {', '.join(KINDS)}, and .gz of them"
        )
    return DatasetEntry(name=path.stem or name, path=path, inferred=True)


def _inline(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"dataset: {text!r} looks like an inline entry, but is not valid JSON ({error})") from None
    return value if isinstance(value, dict) else {}


def _info_path(dataset_dir: str | os.PathLike | Mapping[str, Any]) -> Path:
    assert not isinstance(dataset_dir, Mapping)
    if "\0" in str(dataset_dir):
        raise RecipeError(f"dataset_dir: {str(dataset_dir)!r} is not a path")
    path = Path(dataset_dir)
    return path if path.suffix.lower() == ".json" and not path.is_dir() else path / INFO_NAME


def read_info(path: Path) -> dict[str, Any]:
    """UTF-8 always, whatever the system's own encoding is; a name that stands twice is an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise RecipeError(f"{path}: {key!r} stands twice")
            seen[key] = value
        return seen

    if not path.is_file():
        raise RecipeError(f"dataset_dir: {path} does not exist")
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected an object that maps names to entries, got {type(value).__name__}")
    return value
