"""Prepared data sets on disk: flat arrays, memory-mapped, found again by what they were made from.

The key covers the content of the files, the entry, template, tokenizer, options and the encoder's version, so that a
stale copy cannot be found. Arrays are written as they are made, row by row, and the folder takes its name when it is
whole; ranks that ask at once make it once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from llmforge.runs import atomic_dir

KEEP_DAYS = 30  # a copy nobody used for so long is removed
ABOUT = "about.json"
Arrays = dict[str, np.ndarray]


def cache_root(cache_dir: str | None = None) -> Path:
    """Where prepared sets lie: under `cache_dir`, else $FORGE_HOME, else ~/.cache/forge."""
    return Path(cache_dir or os.environ.get("FORGE_HOME") or "~/.cache/forge").expanduser().absolute() / "encoded"


class ArrayFile:
    """A .npy file that grows; numpy leaves room in its header for the length, which is known at the end."""

    def __init__(self, file: IO[bytes], dtype: Any):
        self.file, self.dtype, self.size = file, np.dtype(dtype), 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.size += len(values)

    def finish(self) -> None:
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self.file, header)


@contextmanager
def array_files(folder: Path, dtypes: Mapping[str, Any]) -> Iterator[dict[str, ArrayFile]]:
    """One growing file for each name."""
    with ExitStack() as stack:
        files = {n: ArrayFile(stack.enter_context(open(folder / f"{n}.npy", "wb")), t) for n, t in dtypes.items()}
        yield files
        for file in files.values():
            file.finish()


def load(folder: Path, names: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]] | None:
    """Arrays and description of a prepared set, or None when it is not there whole."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {name: _array(folder / f"{name}.npy") for name in names}, about
    except (OSError, ValueError):
        return None


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # nothing can be mapped of an empty array
        return np.load(path)


def prepared_once(
    folder: Path,
    names: Mapping[str, Any],
    make: Callable[[Path], dict[str, Any]],
    *,
    overwrite: bool = False,
) -> tuple[Arrays, dict[str, Any], bool]:
    """The set at `folder`, made first when it is not there; and whether it was made now.

    Args:
        make: writes the arrays into a temporary folder and returns what is to be known besides them.
        overwrite: make it anew, unless another process did so while this one waited.

    Raises:
        OSError: the folder cannot be written; whoever calls does without.
    """
    started = time.time()
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        made_meanwhile = (folder / ABOUT).is_file() and (folder / ABOUT).stat().st_mtime > started
        found = load(folder, names) if made_meanwhile or not overwrite else None
        if found is not None:
            os.utime(folder)  # used today
            return *found, False
        _remove_old(root)
        with atomic_dir(folder) as temporary:
            about = make(temporary)
            (temporary / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        found = load(folder, names)
        if found is None:
            raise OSError(f"{folder} cannot be read back")
        return *found, True


def _remove_old(root: Path) -> None:
    for folder in root.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEEP_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
            (root / f"{folder.name}.lock").unlink(missing_ok=True)
