"""Whole checkpoints: files.json lists every file with size and sha256, is written last, and is checked before resuming.

No torch: `runs show` and the launcher read checkpoints too.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from llmforge.errors import RunError
from llmforge.runs import RunDir, atomic_write, settle_dir, sha256_file

FILES = "files.json"


def seal(temporary: Path, final: Path) -> None:
    """List the files of a finished checkpoint and give it its name; before this it does not count."""
    files = {}
    for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
        files[path.relative_to(temporary).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    atomic_write(temporary / FILES, json.dumps({"files": files}, indent=1))  # no line end: cut anywhere it is no JSON
    settle_dir(temporary, final)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None when it is whole."""
    try:
        listed = json.loads((folder / FILES).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{folder / FILES} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder / FILES} is damaged"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{path} has {path.stat().st_size} bytes instead of {expected['size']}"
        if sha256_file(path) != expected["sha256"]:
            return f"{path} does not have the content that was saved"
    return None


def find_checkpoint(run: RunDir, wanted: bool | str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from and notices about damaged ones that were skipped.

    Args:
        wanted: true for the newest whole checkpoint of the run, a path, or false/None for none.

    Raises:
        RunError: the path given is not a whole checkpoint; the message names the file.
    """
    if not wanted:
        return None, []
    if isinstance(wanted, str):
        problem = damage(Path(wanted)) if Path(wanted).is_dir() else f"{wanted} is not a folder"
        if problem:
            raise RunError(
                f"resume_from_checkpoint: {problem}; give another checkpoint, or true for the newest whole one"
            )
        return Path(wanted), []
    notices: list[str] = []
    for folder in run.checkpoints():
        problem = damage(folder)
        if problem is None:
            return folder, notices
        notices.append(f"skipped a damaged checkpoint: {problem}")
    return None, notices


def prune(run: RunDir, keep: int | None, best: Path | None) -> None:
    """Remove all but the `keep` newest checkpoints; the best one stays beside them."""
    if keep is None:
        return
    for folder in run.checkpoints()[keep:]:
        if best is None or folder.name != best.name:
            gone = folder.with_name(f".{folder.name}.old")
            os.replace(folder, gone)  # out of sight first, so that a half-removed one is never looked at
            shutil.rmtree(gone, ignore_errors=True)
