"""Starting, stopping and removing runs: each is a process of its own, and its folder says how it is doing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
import yaml

from llmforge.process import is_running, process_start
from llmforge.runs import RunDir, atomic_write
from llmforge.webui.board import Board
from llmforge.webui.detached import spawn
from llmforge.webui.exporting import is_exporting
from llmforge.webui.refusal import Refusal
from llmforge.webui.waiting import KILLED

GIVEN = "given.yaml"  # the recipe as it was written; recipe.yaml is the resolved one, which the run writes
LAUNCH = "launch.json"  # the waiting process, the devices and the words, for stopping and resuming
CONSOLE = "console.log"
NAME = re.compile(r"[\w][\w.+-]{0,79}")  # letters of any script


def check_name(name: str) -> str:
    """A run's name: letters, digits, dots, dashes and underscores, and a letter or digit first.

    Raises:
        Refusal: it is something else.
    """
    if not NAME.fullmatch(name):
        raise Refusal("runs.bad_name", "output_dir", name=name)
    return name


def free_name(board: Board, name: str) -> str:
    """`name`, or name-2, name-3 and so on: the first whose folder is not there."""
    tried, number = name, 2
    while (board.runs / tried).exists():
        tried, number = f"{name}-{number}", number + 1
    return tried


def start_run(board: Board, name: str, recipe: str, devices: Sequence[str]) -> RunDir:
    """Start training in runs/NAME with the recipe's text; it waits in line for its devices by itself.

    Raises:
        Refusal: the name is no name, or its folder is there already.
    """
    run = RunDir(board.path(f"runs/{check_name(name)}"))
    board.runs.mkdir(exist_ok=True)
    try:
        run.path.mkdir()
    except FileExistsError:
        raise Refusal("runs.name_taken", "output_dir", name=name) from None
    text = with_key(recipe, "output_dir", board.shown(run.path))
    atomic_write(run.path / GIVEN, text)
    begin(board, run, devices, ["train", board.shown(run.path / GIVEN)])
    return run


def resume_run(board: Board, run: RunDir) -> None:
    """Go on from the newest whole checkpoint, or from the start when there is none.

    Raises:
        Refusal: it runs, or there is nothing to go on with.
    """
    if run.read_state().live:
        raise Refusal("runs.is_live", name=board.shown(run.path))
    if run.recipe_path.is_file():
        words = ["train", board.shown(run.path), "resume_from_checkpoint=true"]
    elif (run.path / GIVEN).is_file():
        words = ["train", board.shown(run.path / GIVEN)]
    else:
        raise Refusal("runs.no_recipe", name=board.shown(run.path))
    devices = launched(run).get("devices") or ["cpu"]
    begin(board, run, devices, words)


def launched(run: RunDir) -> dict[str, Any]:
    """What launch.json holds; empty for a run that the command line started."""
    try:
        found = json.loads((run.path / LAUNCH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def begin(board: Board, run: RunDir, devices: Sequence[str], words: Sequence[str]) -> None:
    """Start the process that waits for the devices and then runs forge-cli with `words`; the run is queued from now."""
    before = time.time()
    place = str(time.time_ns())  # in line: who was started first is first, whichever process comes up sooner
    command = [sys.executable, "-m", "llmforge.webui.waiting", str(run.path), ",".join(devices), place, *words]
    process = spawn(board, command, run.path / CONSOLE, append=True, held=True, environment=visible(devices))
    who = {"pid": process.pid, "process_start": process_start(process.pid), "host": socket.gethostname()}
    atomic_write(run.path / LAUNCH, json.dumps({**who, "devices": list(devices), "words": list(words)}, indent=1))
    run.write_state(state="queued", phase="", start_time=before, error=None, exit_code=None, **who)
    assert process.stdin
    process.stdin.close()  # now it may begin


def visible(devices: Sequence[str]) -> dict[str, str]:
    """Environment that shows a run its cards alone; empty for the processor."""
    cards = [name.removeprefix("cuda:") for name in devices if name.startswith("cuda:")]
    return {"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {}


def command_of(recipe: str, devices: Sequence[str], words: Sequence[str] = ()) -> str:
    """The same without the board."""
    shown = "".join(f"{name}={value} " for name, value in visible(devices).items())
    return f"{shown}forge-cli train {' '.join([recipe, *words])}"


def stop_run(run: RunDir) -> None:
    """Let it save a checkpoint after the step it is in, and end; in line, it leaves the line.

    Raises:
        Refusal: it does not run on this machine.
    """
    state = run.read_state()
    if not (state.live and state.pid and is_running(state.pid, state.more.get("process_start"))):
        raise Refusal("runs.not_here", name=run.path.name)
    os.kill(state.pid, signal.SIGTERM)


def kill_run(run: RunDir) -> None:
    """End it at once; what was saved stays.

    Raises:
        Refusal: it does not run on this machine.
    """
    state, launch = run.read_state(), launched(run)
    if launch and is_running(launch["pid"], launch.get("process_start")):
        os.kill(launch["pid"], signal.SIGUSR1)
        return
    if not (state.live and state.pid and is_running(state.pid, state.more.get("process_start"))):
        raise Refusal("runs.not_here", name=run.path.name)
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(state.pid)
        for each in [*process.children(recursive=True), process]:
            each.kill()
        process.wait(5)
    run.write_state(state="stopped", error=KILLED)


def delete_run(board: Board, run: RunDir, typed: str) -> None:
    """Remove a run's folder; its name must be typed.

    Raises:
        Refusal: another name, it runs or is exported, or it holds other runs.
    """
    if typed.strip() != run.path.name:
        raise Refusal("runs.type_it", name=run.path.name)
    if run.path == board.root or run.path == board.runs or not run.path.is_relative_to(board.root):
        raise Refusal("runs.no_run", name=run.path)
    if run.read_state().live:
        raise Refusal("runs.stop_first", name=run.path.name)
    if is_exporting(board, run):
        raise Refusal("runs.export_first", name=run.path.name)
    inside = [path for path in run.path.rglob("run.json") if path.parent != run.path]
    if inside:
        raise Refusal("runs.holds_runs", names=", ".join(board.shown(path.parent) for path in inside))
    shutil.rmtree(run.path)


def with_key(recipe: str, key: str, value: Any) -> str:
    """The recipe's text with one key set; comments and the order of the other lines stay."""
    line = yaml.safe_dump({key: value}, allow_unicode=True, default_flow_style=True, width=10**6).strip()[1:-1]
    pattern = re.compile(rf"^{re.escape(key)}\s*:.*(?:\n[ \t-].*)*", re.MULTILINE)
    if pattern.search(recipe):
        return pattern.sub(lambda _: line, recipe, count=1)
    return f"{recipe.rstrip()}\n{line}\n"
