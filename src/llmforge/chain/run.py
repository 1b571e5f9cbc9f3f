"""Links one after the other: those that are done are left out, begun ones go on, and the first failure ends it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.chain.child import run_child
from llmforge.chain.gate import metrics_of, pass_gate
from llmforge.chain.inputs import inputs_of, made_by
from llmforge.chain.link import Link, resolve
from llmforge.chain.record import Record, Verdict
from llmforge.config.dump import dump_given, spoken
from llmforge.config.given import refuse
from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError
from llmforge.process import process_start
from llmforge.runs import RunDir, atomic_write

SAID = {"skip": "done before", "resume": "goes on", "new": "starts"}


@dataclass(frozen=True)
class Done:
    """How a link ended."""

    link: Link
    state: str  # done, skipped, failed, stopped
    exit_code: int = 0
    elapsed_s: float = 0.0
    reason: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        return metrics_of(self.link.folder) if self.link.command != "gate" else {}


class LinkRunner:
    """Runs the links of one folder and keeps their record."""

    def __init__(self, folder: Path, files: list[str], overwrite: bool = False):
        self.folder, self.files, self.overwrite = folder, files, overwrite
        self.record = Record.open(folder)
        self.recipes: dict[str, Recipe] = {}
        self.folders: dict[str, Path] = {}
        self.run_dir = RunDir(folder)

    @contextmanager
    def at_work(self, num_links: int) -> Iterator[None]:
        """Hold the folder, and tell in its run.json how it goes."""
        self.run_dir.make()
        with self.run_dir.lock():
            self.run_dir.write_state(
                state="running", phase="check", pid=os.getpid(), process_start=process_start(os.getpid()),
                host=socket.gethostname(), start_time=time.time(), step=0, total_steps=num_links, error=None,
                exit_code=None, command=spoken(sys.argv),
            )  # fmt: skip
            try:
                yield
            except BaseException as error:
                self.run_dir.write_state(state="failed", error=str(error), exit_code=getattr(error, "exit_code", 1))
                raise

    def end(self, exit_code: int, stopped: bool) -> None:
        state = "stopped" if stopped else "failed" if exit_code else "finished"
        self.run_dir.write_state(state=state, phase="done", exit_code=exit_code)

    def run(self, link: Link, number: int) -> Done:
        """Run one link, unless it is done.

        Raises:
            RecipeError: the link cannot run, now that those before it have.
            GateError: a gate was not passed.
        """
        self.run_dir.write_state(phase=f"link {link.name}", step=number)
        if link.command == "gate":
            lines = pass_gate(link.name, str(link.of), self.folders[str(link.of)], link.bars)
            for line in lines:
                say(f"link {link.name}: {line}: passed")
            return Done(link, "done")
        recipe, problems = resolve(link, self.recipes, self.folders)
        if recipe is None:
            raise refuse(self.files, problems)
        self.recipes[link.name], self.folders[link.name] = recipe, link.folder
        inputs = inputs_of(recipe)
        verdict = Verdict("new", "overwrite_output_dir") if self.overwrite else self._verdict(link, inputs)
        say(
            f"link {link.name}: {SAID[verdict.action]}{f' ({verdict.reason})' if verdict.reason else ''}; {link.folder}"
        )
        if verdict.action == "skip":
            return Done(link, "skipped", reason="inputs unchanged")
        return self._start(link, recipe, inputs, verdict)

    def _verdict(self, link: Link, inputs: dict[str, str]) -> Verdict:
        if link.name not in self.record.links and link.folder.exists() and any(link.folder.iterdir()):
            raise RecipeError(
                f"link {link.name}: {link.folder} holds files that this chain has not made; "
                "give another output_dir, or say overwrite_output_dir=true to throw them away"
            )
        return self.record.verdict(link.name, link.folder, inputs)

    def _start(self, link: Link, recipe: Recipe, inputs: dict[str, str], verdict: Verdict) -> Done:
        words = [link.command, str(self._write_recipe(link, recipe))]
        if verdict.action == "new":
            shutil.rmtree(link.folder, ignore_errors=True)
        elif link.command == "train":
            words.append("resume_from_checkpoint=true")
        elif link.command == "export":
            shutil.rmtree(link.folder, ignore_errors=True)
        self.record.set(link.name, inputs=inputs, state="running", made={})
        started = time.monotonic()
        code, asked = run_child(words, recipe)
        elapsed_s = time.monotonic() - started
        state = "done" if code == 0 else "stopped" if asked else "failed"
        facts: dict[str, Any] = {"state": state, "exit_code": code, "elapsed_s": round(elapsed_s, 1)}
        self.record.set(link.name, **facts, made=made_by(link.folder) if code == 0 else {})
        return Done(link, state, code, elapsed_s)

    def _write_recipe(self, link: Link, recipe: Recipe) -> Path:
        """The link's recipe as its process reads it: every given key with its value."""
        path = self.folder / "recipes" / f"{link.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, f"# link {link.name} of {', '.join(self.files) or 'the command line'}\n{dump_given(recipe)}")
        return path


def failure(done: Done) -> str:
    """What is said of a link that did not end well."""
    what = "was stopped" if done.state == "stopped" else f"failed with exit code {done.exit_code}"
    return f"link {done.link.name} {what}; the same command goes on with it ({done.link.folder})"


def run_links(runner: LinkRunner, links: list[Link]) -> tuple[list[Done], int]:
    """Run the links in their order up to the first that does not end well; (what was done, exit code).

    Raises:
        ForgeError: a gate that was not passed, or a link that cannot run.
    """
    ended: list[Done] = []
    for number, link in enumerate(links):
        done = runner.run(link, number)
        ended.append(done)
        if done.exit_code:
            say(f"forge-cli: {failure(done)}")
            runner.end(done.exit_code, done.state == "stopped")
            return ended, done.exit_code
    runner.end(0, False)
    return ended, 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
