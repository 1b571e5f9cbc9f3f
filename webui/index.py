"""What the board knows of all runs: an index beside the folders, which are the truth. It may be deleted at any time.

`Index.runs()` walks the run folders, takes from runs.sqlite what has not changed since, and looks anew at the rest.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from llmforge.errors import RecipeError
from llmforge.runs import LIVE_STATES, RunDir, RunState, read_manifest, state_files
from llmforge.webui.board import Board
from llmforge.webui.curves import Curves

SCHEMA = 1
STALE_AFTER_S = 30.0  # without a heartbeat; the run writes one every 5 seconds


@dataclass(frozen=True)
class RunRow:
    """One run as the table shows it; times in seconds since the epoch."""

    name: str  # its folder, from the project folder
    state: str
    phase: str
    step: int
    total_steps: int
    loss: float | None
    best_eval: float | None
    started: float
    ended: float
    heartbeat: float
    size: int
    stage: str
    method: str
    model: str
    data: str
    error: str
    alarms: list[str]
    remaining_s: float | None
    pid: int | None

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def took(self) -> float:
        return max((time.time() if self.live else self.ended) - self.started, 0.0) if self.started else 0.0

    @property
    def silent_s(self) -> float | None:
        """Seconds without a sign of life, of a live run whose heart should beat by now."""
        if self.state not in ("starting", "running", "stopping") or not self.heartbeat:
            return None
        silent = time.time() - self.heartbeat
        return silent if silent > STALE_AFTER_S else None


@functools.cache
def index_of(board: Board) -> Index:
    """The index that all pages of a board share."""
    return Index(board)


class Index:
    """The runs of one project."""

    def __init__(self, board: Board, curves: Curves | None = None):
        self.board, self.curves = board, curves or Curves()
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[str, RunRow]] = {}
        self._read_at = 0.0
        self._rows: list[RunRow] = []

    @property
    def path(self) -> Path:
        return self.board.own / "runs.sqlite"

    def runs(self, max_age_s: float = 0.5) -> list[RunRow]:
        """All runs, the newest first; several pages that ask at the same moment share one look."""
        with self._lock:
            if time.monotonic() - self._read_at > max_age_s:
                self._rows = self._look()
                self._read_at = time.monotonic()
            return self._rows

    def run(self, name: str) -> RunRow | None:
        """One run by its name, None when it is not there."""
        return next((row for row in self.runs() if row.name == name), None)

    def _look(self) -> list[RunRow]:
        if not self._seen:
            self._seen = self._load()
        found: dict[str, tuple[str, RunRow]] = {}
        changed = []
        for path in (path for root in ("runs", "saves") for path in state_files(self.board.root / root, 4)):
            name = self.board.shown(path.parent)
            stamp = _stamp(path.parent)
            known = self._seen.get(name)
            if known and known[0] == stamp and not known[1].live:
                found[name] = known
                continue
            row = self._row(RunDir(path.parent), name)
            found[name] = (stamp, row)
            if known != found[name]:
                changed.append(name)
        gone = self._seen.keys() - found.keys()
        self._seen = found
        if changed or gone:
            self._store({name: found[name] for name in changed}, list(gone))
        return sorted((row for _, row in found.values()), key=lambda row: -row.started)

    def _row(self, run: RunDir, name: str) -> RunRow:
        try:
            state = run.read_state()
        except RecipeError as error:
            state = RunState(run.path, "lost", error=str(error))
        curve = self.curves.of(run.log_path)
        about = _about(run)
        loss = state.more.get("loss", curve.last.get("loss"))
        return RunRow(
            name=name,
            state=state.state,
            phase=state.phase,
            step=state.step,
            total_steps=state.total_steps,
            loss=loss if isinstance(loss, (int, float)) else None,
            best_eval=curve.best(),
            started=state.start_time,
            ended=state.heartbeat_at,
            heartbeat=state.heartbeat_at,
            size=0 if state.live else _size(run.path),
            error=state.error or "",
            alarms=list(state.more.get("alarms") or []),
            remaining_s=state.more.get("remaining_s"),
            pid=state.pid,
            **about,
        )

    def _load(self) -> dict[str, tuple[str, RunRow]]:
        """What the index held; nothing where it is absent, of another version, or damaged."""
        if not self.path.is_file():
            return {}
        try:
            with contextlib.closing(self._open()) as db:
                rows = db.execute("SELECT name, stamp, row FROM runs").fetchall()
            return {name: (stamp, RunRow(**json.loads(row))) for name, stamp, row in rows}
        except (sqlite3.Error, ValueError, TypeError):
            self.path.unlink(missing_ok=True)
            return {}

    def _store(self, rows: dict[str, tuple[str, RunRow]], gone: list[str]) -> None:
        self.board.own.mkdir(exist_ok=True)
        try:
            with contextlib.closing(self._open()) as db, db:
                db.executemany(
                    "REPLACE INTO runs VALUES (?, ?, ?)",
                    [(name, stamp, json.dumps(asdict(row))) for name, (stamp, row) in rows.items()],
                )
                db.executemany("DELETE FROM runs WHERE name = ?", [(name,) for name in gone])
        except sqlite3.Error:  # the folders are the truth; the next look tries again
            self.path.unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=5)
        if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
            db.execute("DROP TABLE IF EXISTS runs")
            db.execute("CREATE TABLE runs (name TEXT PRIMARY KEY, stamp TEXT, row TEXT)")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
        return db


def _stamp(folder: Path) -> str:
    """What changes when a run did something."""
    parts = []
    for name in ("run.json", "trainer_log.jsonl", "manifest.json", "train_results.json"):
        try:
            stat = os.stat(folder / name)
            parts.append(f"{stat.st_mtime_ns}.{stat.st_size}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def _size(folder: Path) -> int:
    total = 0
    for inner, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(inner, name)).st_size
            except OSError:  # removed while we look
                continue
    return total


def _about(run: RunDir) -> dict[str, str]:
    """Stage, method, model and data: from the manifest, or from the recipe before there is one."""
    try:
        manifest = read_manifest(run.path) or {}
    except RecipeError:
        manifest = {}
    recipe = recipe_of(run)
    data = recipe.get("dataset") or []
    names = [data] if isinstance(data, (str, dict)) else data
    return {
        "stage": str(manifest.get("stage") or recipe.get("stage") or "sft"),
        "method": str(manifest.get("finetuning_type") or recipe.get("finetuning_type") or "lora"),
        "model": str(manifest.get("base_model") or recipe.get("model_name_or_path") or ""),
        "data": ", ".join(_data_name(name) for name in names),
    }


def _data_name(name: Any) -> str:
    if isinstance(name, dict):
        return str(name.get("name") or name.get("file_name") or "?")
    return str(name).strip()


def recipe_of(run: RunDir) -> dict[str, Any]:
    """The run's recipe as a mapping: the resolved one, else the one it was started with; empty when there is none."""
    for path in (run.recipe_path, run.path / "given.yaml"):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(found, dict):
            return found
    return {}
