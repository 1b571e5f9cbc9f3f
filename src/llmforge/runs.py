"""Run folders: which files a run has, how it is doing, and who may write there. No torch.

`RunDir` names the files of one run (docs/architecture.md), `list_runs` finds runs under a folder. A run's state is in
run.json, where it came from in manifest.json. All files are written under a temporary name and renamed, so that a
reader never sees half a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.errors import RecipeError, RunError
from llmforge.process import is_running, process_start

_STATE_LOCK = threading.RLock()  # run.json is read, changed and written by a run's main thread and its heartbeat
LIVE_STATES = ("queued", "starting", "running", "stopping")
MANIFEST = "manifest.json"
STATE = "run.json"
# What a run leaves behind that somebody may want to keep. Everything else of a run is made anew at every start.
RESULTS = ("train_results.json", "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
BESIDE_RESULTS = (
    "adapter_config.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "trainer_state.json", "generated_predictions.jsonl", "predict_results.json",
    "predict_recipe.yaml",
)  # fmt: skip


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` survive a power cut; a system that cannot sync folders is left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def atomic_write(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace the file at `path` by `data` in one step; text is UTF-8.

    `durable=False` skips the fsync, for files such as a heartbeat that are written again soon.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well, and vanishes when it does not.

    Every file in it is fsynced first. A folder that was at `path` is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        settle_dir(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def settle_dir(temporary: Path, path: Path) -> None:
    """Fsync all files of `temporary` and rename it to `path`, replacing a folder that is there."""
    for folder, _, files in os.walk(temporary):
        for name in files:
            settle_file(Path(folder, name))
        fsync_dir(Path(folder))
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    fsync_dir(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def settle_file(path: Path) -> None:
    """Fsync a file, and let those read it who may read its folder: safetensors writes for its owner alone."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    os.chmod(path, path.parent.stat().st_mode & 0o666)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Where a run or an export came from, or None when the folder has no manifest; a checkpoint shares its run's.

    Raises:
        RecipeError: the manifest is not a JSON object.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file() and folder.name.startswith("checkpoint-"):
        path = folder.parent / MANIFEST
    if not path.is_file():
        return None
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class RunState:
    """How a run is doing. `state` is what run.json says, but "lost" when its process is gone without a last word."""

    path: Path
    state: str
    phase: str = ""
    step: int = 0
    total_steps: int = 0
    pid: int | None = None
    start_time: float = 0.0  # seconds since the epoch, as all times here
    heartbeat_at: float = 0.0
    error: str | None = None
    more: dict[str, Any] = field(default_factory=dict)  # everything else that run.json holds

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES


@dataclass(frozen=True)
class RunDir:
    """The folder of one run and the names of its files."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST

    @property
    def state_path(self) -> Path:
        return self.path / STATE

    @property
    def lock_path(self) -> Path:
        return self.path / "run.lock"

    @property
    def log_path(self) -> Path:
        return self.path / "trainer_log.jsonl"

    @property
    def data_report_path(self) -> Path:
        return self.path / "data_report.json"

    @property
    def results_path(self) -> Path:
        return self.path / "train_results.json"

    @property
    def plot_path(self) -> Path:
        return self.path / "training_loss.png"

    @property
    def predictions_path(self) -> Path:
        return self.path / "generated_predictions.jsonl"

    def checkpoints(self) -> list[Path]:
        """Folders checkpoint-N, highest N first; whether they are whole is another question."""
        found = [p for p in self.path.glob("checkpoint-*") if p.is_dir() and p.name[11:].isdigit()]
        return sorted(found, key=lambda p: -int(p.name[11:]))

    def results(self) -> list[str]:
        """Names of what would be lost if the folder were used anew: checkpoints, weights, results."""
        return [p.name for p in self.checkpoints()] + [name for name in RESULTS if (self.path / name).exists()]

    @classmethod
    def create(cls, path: str | os.PathLike, overwrite: bool = False) -> RunDir:
        """Make the folder, or take one that holds nothing worth keeping; `overwrite` throws results away.

        Only files of a run are removed, never others that lie there.

        Raises:
            RecipeError: the folder holds results and `overwrite` is false, or it cannot be written.
        """
        run = cls(Path(path))
        run.make()
        if not overwrite:
            run.refuse_results()
        run.clear()
        return run

    def refuse_results(self) -> None:
        """Raises:
        RecipeError: the folder holds results that a new start would throw away.
        """
        kept = self.results()
        if kept:
            shown = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
            raise RecipeError(
                f"output_dir: {self.path} holds a run already ({shown}). Choose one:\n"
                "  resume_from_checkpoint=true   go on from its newest checkpoint\n"
                "  overwrite_output_dir=true     throw it away and start anew\n"
                "  output_dir=ANOTHER            keep both"
            )

    def refuse_live(self) -> None:
        """Raises:
        RunError: another live process holds the folder.
        """
        if self.lock_path.is_file():
            with _exclusive(self.lock_path) as file:
                self._refuse_holder(_read_lock(file))

    def make(self) -> None:
        """Make the folder itself.

        Raises:
            RecipeError: it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RecipeError(f"output_dir: {self.path} is a file") from None
        except OSError as error:
            raise RecipeError(f"output_dir: {self.path} cannot be made: {error.strerror}") from None
        if not os.access(self.path, os.W_OK):
            raise RecipeError(f"output_dir: {self.path} cannot be written")

    def clear(self) -> None:
        """Remove what a run wrote here: results, checkpoints, logs. The lock stays, since its holder is at work."""
        for folder in [*self.checkpoints(), *self.path.glob(".checkpoint-*"), *self.path.glob(".result.*")]:
            shutil.rmtree(folder)
        files = [*self.path.glob("model-*-of-*.safetensors"), *(self.path / name for name in RESULTS + BESIDE_RESULTS)]
        logs = (self.log_path, self.data_report_path, self.plot_path, self.state_path, self.manifest_path)
        for file in (*files, *logs, self.recipe_path):
            file.unlink(missing_ok=True)

    def read_state(self) -> RunState:
        """How the run is doing; "lost" when run.json says it lives and its process does not.

        Raises:
            RecipeError: there is no run.json here.
        """
        if not self.state_path.is_file():
            raise RecipeError(f"{self.path}: no run here ({STATE} is missing)")
        return self._state_of(_read_object(self.state_path))

    def _state_of(self, raw: dict[str, Any]) -> RunState:
        known = {name: raw[name] for name in RunState.__dataclass_fields__ if name in raw and name != "path"}
        known.setdefault("state", "lost")
        more = {name: value for name, value in raw.items() if name not in known}
        here = raw.get("host") == socket.gethostname()  # of a run on another machine only its own words are known
        gone = here and not (known.get("pid") and is_running(known["pid"], raw.get("process_start")))
        if known["state"] in LIVE_STATES and gone:
            more["last_state"], known["state"] = known["state"], "lost"
        return RunState(self.path, more=more, **known)

    def write_state(self, **changes: Any) -> None:
        """Merge `changes` into run.json; every write is also a heartbeat."""
        with _STATE_LOCK:
            raw = _read_object(self.state_path) if self.state_path.is_file() else {}
            raw.update(changes, heartbeat_at=time.time())
            text = json.dumps(raw, indent=1, ensure_ascii=False) + "\n"
            atomic_write(self.state_path, text, durable="state" in changes)

    def heartbeat(self) -> None:
        """Say that the process lives."""
        self.write_state()

    @contextlib.contextmanager
    def lock(self) -> Iterator[str | None]:
        """Hold the folder for this process; yields a notice when a dead process's lock was taken over, else None.

        Raises:
            RunError: another live process holds it.
        """
        notice = self._take_lock()
        try:
            yield notice
        finally:
            with _exclusive(self.lock_path) as file:
                if _read_lock(file).get("pid") == os.getpid():
                    file.truncate(0)

    def _take_lock(self) -> str | None:
        with _exclusive(self.lock_path) as file:
            holder = _read_lock(file)
            self._refuse_holder(holder)
            me = {"pid": os.getpid(), "process_start": process_start(os.getpid()), "host": socket.gethostname()}
            file.seek(0)
            file.truncate()
            file.write(json.dumps(me))
            file.flush()
        return f"took over the lock of process {holder['pid']}, which is gone" if holder else None

    def _refuse_holder(self, holder: dict[str, Any]) -> None:
        here = holder.get("host") == socket.gethostname()
        alive = is_running(holder["pid"], holder.get("process_start")) if holder and here else bool(holder)
        if alive:
            where = f"process {holder['pid']}" + ("" if here else f" on {holder.get('host')}")
            raise RunError(
                f"output_dir: {self.path} is in use by {where}. Wait for it, stop it with "
                f"`forge-cli runs stop {self.path}`, or give another output_dir"
                + ("" if here else f"; if that machine is gone, delete {self.lock_path}")
            )


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[Any]:
    """The lock file, opened by one process at a time; it is never unlinked, so nobody locks a file without a name."""
    with open(path, "a+", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # Windows has no flock; two starts in the same millisecond are not told apart there
            yield file
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read_lock(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        holder = json.loads(file.read() or "{}")
    except json.JSONDecodeError:  # the holder died while writing its name
        return {}
    return holder if isinstance(holder, dict) and "pid" in holder else {}


def list_runs(root: str | os.PathLike) -> list[RunState]:
    """All runs under `root` (itself included, at most four levels down), the newest first."""
    root = Path(root)
    states = []
    for path in state_files(root, 4):
        try:
            states.append(RunDir(path.parent).read_state())
        except RecipeError as error:
            states.append(RunState(path.parent, "lost", error=str(error)))
    return sorted(states, key=lambda state: -state.start_time)


def state_files(folder: Path, depth: int) -> Iterator[Path]:
    """Every run.json in `folder` and up to `depth` levels below it."""
    if (folder / STATE).is_file():
        yield folder / STATE
    if depth == 0 or not folder.is_dir():
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith((".", "checkpoint-")):
            yield from state_files(child, depth - 1)
