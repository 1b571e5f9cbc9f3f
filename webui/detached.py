"""Processes that outlive the board: each in a session of its own, its words in a log, nothing of it in a pipe."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmforge.webui.board import Board


def spawn(
    board: Board,
    command: Sequence[str],
    log: Path,
    *,
    append: bool = False,
    held: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in the project folder.

    Args:
        log: where it writes; begun anew unless `append`.
        held: its standard input stays open until the caller closes it, so that it can wait for that.
        environment: variables beside those of the board.
    """
    with open(log, "ab" if append else "wb") as out:
        process = subprocess.Popen(
            command,
            cwd=board.root,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **(environment or {})},
            stdin=subprocess.PIPE if held else subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    _children.append(process)
    for child in [child for child in _children if child.poll() is not None]:
        _children.remove(child)
    return process


_children: list[subprocess.Popen[bytes]] = []  # asked for their exit codes now and then, so that none stays a zombie
