"""The files and folders that a recipe names: found and stored as they are, or named as missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.config.given import Given, Problem
from llmforge.config.keys import keys, keys_of
from llmforge.config.paths import DATA_SUFFIXES, find_deepspeed, find_input, looks_local
from llmforge.config.schema import Origin
from llmforge.config.yaml_text import shown
from llmforge.errors import nearest


@dataclass
class Found:
    """What looking for the files brought: `wrong` names the keys with a missing one."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    def missing(self, key: str, name: str, origin: Origin, what: str = "file or folder") -> None:
        self.wrong.add(key)
        self.problems.append(Problem(origin, f"{key}: no {what} {name!r}{_looked(origin)}{_beside(name, origin)}"))


def find_all(values: dict[str, Any], given: dict[str, Given], command: str) -> Found:
    """Replace the names of inputs in `values` by the paths where they are.

    A file that the command does not read may be missing: a run can be served where its data are not.
    """
    found = Found()
    read = {key.name for group in keys_of(command).values() for key in group}
    inputs = [name for name, key in keys().items() if key.rule.path == "input"]
    for name in (*inputs, *SEARCHES):
        if values.get(name) in (None, [], keys()[name].default) or name not in given:
            continue
        mine = found if name in read else Found()
        SEARCHES.get(name, _single)(name, values, given[name].origin, mine)
    for name, key in keys().items():
        if key.rule.path == "output" and values.get(name):
            values[name] = str(Path(os.path.expanduser(values[name])))
    return found


def plugin_files(item: Given) -> tuple[list[str], list[Problem]]:
    """The plugins of a recipe as paths."""
    names = (
        item.value
        if isinstance(item.value, list)
        else [p.strip() for p in str(item.value or "").split(",") if p.strip()]
    )
    found, problems = [], []
    for name in names:
        path = find_input(str(name), item.origin)
        if path is None or not path.endswith(".py") or not os.path.isfile(Path(path)):
            problems.append(Problem(item.origin, f"plugins: got {shown(name)}, expected a Python file that exists"))
        else:
            found.append(path)
    return found, problems


def _single(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    path = find_input(values[name], origin)
    if path is None:
        found.missing(name, values[name], origin)
    else:
        values[name] = path


def _deepspeed(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    if isinstance(values[name], dict):
        return
    path, note = find_deepspeed(values[name], origin)
    if note:
        found.notes.append(note)
    if path is None:
        found.missing(name, values[name], origin, "DeepSpeed file")
    else:
        values[name] = path
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.problems.append(Problem(origin, f"{name}: {path} is not valid JSON: {error}"))
        else:
            if not isinstance(settings, dict):
                found.problems.append(Problem(origin, f"{name}: {path} must hold a JSON object"))


def _template(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    if values[name].endswith((".yaml", ".yml")):
        _single(name, values, origin, found)


def _model(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    path = find_input(values[name], origin)
    if path is not None:
        values[name] = path
    elif looks_local(values[name]):
        found.missing(name, values[name], origin, "model folder or file")


def _adapters(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    paths = [find_input(adapter, origin) for adapter in values[name]]
    for adapter, path in zip(values[name], paths, strict=True):
        if path is None and looks_local(adapter):
            found.missing(name, adapter, origin, "adapter folder")
    values[name] = [path or adapter for path, adapter in zip(paths, values[name], strict=True)]


def _checkpoint(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    if isinstance(values[name], str):
        _single(name, values, origin, found)


def _datasets(name: str, values: dict[str, Any], origin: Origin, found: Found) -> None:
    """Bare data files; names of the registry, hub names and inline entries stay as they are."""
    folder = Path(values.get("dataset_dir") or keys()["dataset_dir"].default)
    resolved = []
    for entry in values[name]:
        path = None
        if isinstance(entry, str) and ("/" in entry or entry.endswith(DATA_SUFFIXES)):
            path = find_input(entry, origin)
            if path is None and entry.endswith(DATA_SUFFIXES) and not os.path.exists(folder / entry):
                found.missing(name, entry, origin, "data file")
        resolved.append(path or entry)
    values[name] = resolved


SEARCHES: dict[str, Callable[[str, dict[str, Any], Origin, Found], None]] = {
    "deepspeed": _deepspeed,
    "template": _template,
    "model_name_or_path": _model,
    "adapter_name_or_path": _adapters,
    "ref_model": _model,
    "ref_model_adapters": _adapters,
    "resume_from_checkpoint": _checkpoint,
    "dataset": _datasets,
    "eval_dataset": _datasets,
}


def _looked(origin: Origin) -> str:
    return " beside the recipe or in the working directory" if origin.file else " in the working directory"


def _beside(name: str, origin: Origin) -> str:
    """The nearest name in the folder where the file should lie."""
    folders = [Path(os.path.expanduser(name)).parent]
    if origin.file:
        folders.append(Path(origin.file).parent / folders[0])
    names = [entry.name for folder in folders if os.path.isdir(folder) for entry in folder.iterdir()]
    return "." + nearest(Path(name).name, names) if nearest(Path(name).name, names) else ""
