"""The ledger of a data set: one JSON line for everything that was asked, answered and decided; append only.

A line is written before its files are, so a kill at any moment loses at most the requests under way. Lines:
    begin   what the rows depend on                 ask     a request leaves; `worst` is what it may cost
    reply   an answer came, with cause and cost     lost    no answer came
    pass    a row passed every check                end     a row is accepted or rejected for good
    part    a request is over that is no row itself: a vote for a label, a list of new tasks
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.datagen.budget import Spent
from llmforge.errors import RunError

Entry = dict[str, Any]


@dataclass
class RowHistory:
    """What the ledger knows about one row."""

    replies: list[Entry] = field(default_factory=list)
    asked: Entry | None = None  # a request without an answer so far
    passed: Entry | None = None  # its record
    end: Entry | None = None
    part: Entry | None = None

    @property
    def is_done(self) -> bool:
        """Whether the row is decided. One that the teacher failed to answer is asked again."""
        last = self.end or self.part
        return last is not None and not str(last["cause"] or "").startswith("teacher:")


@dataclass
class History:
    """All rows of a ledger, and what they cost."""

    begin: Entry | None = None
    rows: dict[str, RowHistory] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)

    def row(self, id: str) -> RowHistory:
        return self.rows.setdefault(id, RowHistory())

    def take(self, entry: Entry) -> None:
        """Add one line."""
        kind = entry["t"]
        if kind == "begin":
            self.begin = entry
            return
        row = self.row(entry["id"])
        if kind == "ask":
            self._lose(row)  # the run was killed while the row's last request was under way
            row.asked = entry
        elif kind == "reply":
            row.asked = None
            row.replies.append(entry)
            self.spent = self.spent.plus(Spent(**entry["spent"]))
        elif kind == "lost":
            row.asked = None
            self.spent = self.spent.plus(Spent(**entry["spent"]))
        elif kind == "pass":
            row.passed = entry["record"]
        elif kind == "end":
            row.end = entry
        elif kind == "part":
            row.part = entry

    def settle(self) -> None:
        """Count what was under way at a kill as paid: the server may have answered."""
        for row in self.rows.values():
            self._lose(row)

    def _lose(self, row: RowHistory) -> None:
        if row.asked is not None:
            self.spent = self.spent.plus(Spent(**row.asked["worst"]))
            row.asked = None


class Ledger:
    """The open ledger of one process; another process is refused."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._descriptor, path)
            self.history = History()
            for entry in self._read():
                self.history.take(entry)
            self.history.settle()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._written = self._synced = 0
        self._syncing = asyncio.Lock()

    def note(self, *entries: Entry) -> None:
        """Write lines; they survive a kill of this process, and a power cut once a later line is `append`ed.

        Raises:
            RunError: the disk is full; the half line is taken back.
        """
        data = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode("utf-8")
        start = os.fstat(self._descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); what is in it so far is safe") from None
        for entry in entries:
            self.history.take(entry)
        self._written += 1

    async def append(self, *entries: Entry) -> None:
        """Write lines and wait until they are on the disk; waiting tasks share one fsync."""
        self.note(*entries)
        mine = self._written
        async with self._syncing:
            if self._synced >= mine:
                return
            target = self._written
            await asyncio.to_thread(os.fsync, self._descriptor)
            self._synced = target

    def close(self) -> None:
        """Sync and let go of the lock."""
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> Iterator[Entry]:
        """All whole lines; a torn last one, from a kill or a full disk, is cut off."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._descriptor, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                entry["t"]
            except (ValueError, KeyError, TypeError):
                where = f"{self.path} line {number}"
                raise RunError(f"{where}: damaged; restore the file, or use another store.dir") from None
            yield entry


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two generating processes are not kept apart there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunError(f"{path.parent}: another process is generating here; wait for it") from None
