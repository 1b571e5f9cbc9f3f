"""`forge-cli runs`: list, show, stop, resume and remove runs, from their folders alone. No torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge.config.arguments import Arguments
from llmforge.errors import RecipeError, RunError, nearest
from llmforge.process import is_running
from llmforge.runs import RunDir, RunState, list_runs, read_manifest

ROOTS = ("runs", "saves")
LAST_LINES = 5
LOGGED = ("loss", "eval_loss", "grad_norm", "lr", "tokens_per_second")


ACTIONS = {
    "list": "all runs under a folder, the newest first",
    "show": "state, checkpoints and last log lines of a run",
    "stop": "let a run save a checkpoint and end",
    "resume": "go on from the newest whole checkpoint",
    "rm": "remove a run's folder",
}


def main(words: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code."""
    if words and not words[0].startswith("-") and words[0] not in ACTIONS:
        raise RecipeError(
            f"runs: {words[0]!r} is no subcommand.{nearest(words[0], ACTIONS)} Known: {', '.join(ACTIONS)}"
        )
    parser = _parser()
    given = parser.parse_args(list(words))
    if given.action is None:
        parser.print_help()
        return 0
    action = {"list": _list, "show": _show, "stop": _stop, "resume": _resume, "rm": _remove}[given.action]
    return action(given)


def _parser() -> Arguments:
    parser = Arguments(
        prog="forge-cli runs",
        description="Runs and how they are doing.",
        epilog="example: forge-cli runs show runs/classify",
    )
    actions = parser.add_subparsers(dest="action", metavar="|".join(ACTIONS))

    def action(name: str, example: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name, help=ACTIONS[name], description=ACTIONS[name].capitalize() + ".", epilog=f"example: {example}"
        )

    one = action("list", "forge-cli runs list runs --json")
    one.add_argument("root", nargs="*", help=f"folders to look in; default: {' and '.join(ROOTS)}")
    one.add_argument("--json", action="store_true", help="print run.json of every run, for scripts")
    one = action("show", "forge-cli runs show runs/classify")
    one.add_argument("run", help="folder of the run")
    one.add_argument("--json", action="store_true", help="print state, manifest and the whole log, for scripts")
    one = action("stop", "forge-cli runs stop runs/classify")
    one.add_argument("run", help="folder of the run")
    one.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for it (default 600)")
    one = action("resume", "forge-cli runs resume runs/classify num_train_epochs=2")
    one.add_argument("run", help="folder of the run")
    one.add_argument("words", nargs=argparse.REMAINDER, help="key=value to change")
    one = action("rm", "forge-cli runs rm runs/classify --yes")
    one.add_argument("run", help="folder of the run")
    one.add_argument("--yes", action="store_true", help="really remove it")
    return parser


def _list(given: argparse.Namespace) -> int:
    roots = given.root or [root for root in ROOTS if Path(root).is_dir()]
    for root in given.root:
        if not Path(root).is_dir():
            raise RecipeError(f"runs list: {root} is not a folder")
    states = sorted((state for root in roots for state in list_runs(root)), key=lambda state: -state.start_time)
    if given.json:
        print(json.dumps([as_dict(state) for state in states], indent=1, ensure_ascii=False))
    elif not states:
        print(f"no runs in {', '.join(roots) or ' or '.join(ROOTS)}", file=sys.stderr)
    for state in [] if given.json else states:
        steps = f"{state.step}/{state.total_steps}" if state.total_steps else "-"
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.start_time)) if state.start_time else "-"
        print(f"{state.state:<9} {steps:>13}  {started}  {state.path}")
    return 0


def as_dict(state: RunState) -> dict[str, Any]:
    """A run's state as JSON: run.json with the path, and "lost" where its process is gone."""
    known = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "more"}
    return {**known, **state.more, "path": str(state.path)}


def _show(given: argparse.Namespace) -> int:
    run = RunDir(Path(given.run))
    state = run.read_state()
    checkpoints = [folder.name for folder in run.checkpoints()]
    log = run.log_path.read_text(encoding="utf-8").splitlines() if run.log_path.is_file() else []
    manifest = read_manifest(run.path) or {}
    if given.json:
        shown = {
            **as_dict(state),
            "checkpoints": checkpoints,
            "manifest": manifest,
            "log": [json.loads(x) for x in log],
        }
        print(json.dumps(shown, indent=1, ensure_ascii=False))
        return 0
    print(f"{run.path}: {state.state}" + (f" (process {state.pid})" if state.live else ""))
    if state.state == "lost":
        print(f"  its process {state.pid} is gone; go on with: forge-cli runs resume {run.path}")
    print(f"  phase {state.phase or '-'}, step {state.step} of {state.total_steps}")
    if state.error:
        print(f"  error: {state.error}")
    for alarm in state.more.get("alarms") or []:
        print(f"  alarm: {alarm}")
    for key in ("stage", "finetuning_type", "base_model", "template"):
        if manifest.get(key):
            print(f"  {key}: {manifest[key]}")
    print(f"  checkpoints: {', '.join(checkpoints) or 'none'}")
    for line in log[-LAST_LINES:]:
        print(f"  {log_line(json.loads(line))}")
    return 0


def log_line(logged: dict[str, Any]) -> str:
    """A line of trainer_log.jsonl for people: the step and the numbers they look for."""
    shown = [f"{key} {logged[key]:.4g}" for key in LOGGED if isinstance(logged.get(key), (int, float))]
    step = f"{logged.get('current_steps', '-')}/{logged.get('total_steps', '-')}"
    return "  ".join([f"step {step}", *shown, *([logged["elapsed_time"]] if "elapsed_time" in logged else [])])


def _stop(given: argparse.Namespace) -> int:
    run = RunDir(Path(given.run))
    state = run.read_state()
    if not state.live or state.pid is None:
        raise RecipeError(f"runs stop: {run.path} does not run; it is {state.state}")
    start = state.more.get("process_start")
    if not is_running(state.pid, start):
        raise RecipeError(f"runs stop: process {state.pid} of {run.path} does not run on this machine")
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + given.timeout
    while is_running(state.pid, start):
        if time.monotonic() > deadline:
            raise RunError(f"runs stop: process {state.pid} still saves after {given.timeout:.0f} s; look again later")
        time.sleep(0.1)
    state = run.read_state()
    print(f"{run.path}: {state.state}" + (f", saved {state.more['saved']}" if state.more.get("saved") else ""))
    return 0


def _resume(given: argparse.Namespace) -> int:
    run = RunDir(Path(given.run))
    state = run.read_state()
    if state.live:
        raise RecipeError(f"runs resume: {run.path} is running")
    if state.state == "finished" and not given.words:
        raise RecipeError(
            f"runs resume: {run.path} is finished, {state.step} of {state.total_steps} steps; to train on say how far, "
            f"for example: forge-cli runs resume {run.path} max_steps={2 * state.total_steps}"
        )
    if not run.recipe_path.is_file():
        command = state.more.get("command")
        again = f"; a chain or sweep goes on when it is started again: {' '.join(command)}" if command else ""
        raise RecipeError(f"runs resume: {run.recipe_path} is missing{again}")
    from llmforge.train_command import main as train

    return train([str(run.path), "resume_from_checkpoint=true", *given.words])


def _remove(given: argparse.Namespace) -> int:
    run = RunDir(Path(given.run))
    state = run.read_state()
    if state.live:
        raise RecipeError(f"runs rm: {run.path} is running; stop it first: forge-cli runs stop {run.path}")
    inside = [str(other.path) for other in list_runs(run.path) if other.path != run.path]
    if inside:
        raise RecipeError(f"runs rm: other runs lie in {run.path}: {', '.join(inside)}; remove or move them first")
    if not given.yes:
        count = len(run.checkpoints())
        raise RecipeError(f"runs rm: this removes {run.path} with {count} checkpoint{'s' * (count != 1)}; add --yes")
    shutil.rmtree(run.path)
    print(f"removed {run.path}")
    return 0
