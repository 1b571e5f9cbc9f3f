"""The board's project: which folder it shows, where its own files are, and paths that stay inside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmforge.webui.refusal import Refusal


@dataclass(frozen=True)
class Board:
    """What every page is handed: the project folder, which holds runs/, data/ and recipes."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def own(self) -> Path:
        """Files of the board itself: the index of runs, the queue, uploads. They may be deleted when nothing runs."""
        return self.root / ".forge"

    @property
    def uploads(self) -> Path:
        return self.own / "uploads"

    def path(self, name: str | os.PathLike, *, must_exist: bool = False) -> Path:
        """A path that a user gave, inside the project; links are followed before it is judged.

        Raises:
            Refusal: it leads out of the project, or `must_exist` and it does not.
        """
        return safe_join(self.root, name, must_exist=must_exist)

    def shown(self, path: Path) -> str:
        """A path as the pages and commands show it: from the project folder where it lies inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def safe_join(root: Path, name: str | os.PathLike, *, must_exist: bool = False) -> Path:
    """`name` under `root`, or the absolute `name` when it lies there; every path that comes from a page goes through.

    Raises:
        Refusal: it leads out of `root`, holds a NUL, or `must_exist` and it does not.
    """
    text = os.fspath(name)
    if "\0" in text:
        raise Refusal("common.no_path", path=repr(text))
    root = root.resolve()
    path = (root / os.path.expanduser(text)).resolve()
    if not path.is_relative_to(root):
        raise Refusal("common.outside", path=text, root=root)
    if must_exist and not path.exists():
        raise Refusal("common.not_there", path=text, root=root)
    return path
