"""Exporting a run: a job of forge-cli that makes a whole model of it, and how that job stands."""

from __future__ import annotations

import re

from llmforge.runs import RunDir
from llmforge.webui.board import Board
from llmforge.webui.jobs import Job, find_job, start_job
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import Trouble, show_trouble
from llmforge.webui.words import Words

LAST_LINES = 40
WRITTEN = re.compile(r"^written: (.+) \(.+\)$", re.MULTILINE)  # what forge-cli export says of its folder


def start_export(board: Board, run: RunDir) -> Job:
    """Merge the run's result into a model folder; closing the board does not end it.

    Raises:
        Refusal: it is being exported already.
    """
    return start_job(board, _job_name(board, run), ["export", board.shown(run.path)])


def is_exporting(board: Board, run: RunDir) -> bool:
    """Whether that goes on now."""
    job = find_job(board, _job_name(board, run))
    return job is not None and job.is_alive


def show_export(words: Words, board: Board, run: RunDir) -> Safe | None:
    """What the last export of this run does, made, or failed of; None where there was none since the run began."""
    job = find_job(board, _job_name(board, run))
    if job is None or job.started_at < run.read_state().start_time:
        return None
    lines = job.log(LAST_LINES)
    last = next((line for line in reversed(lines.splitlines()) if line.strip()), "")
    if job.state == "running":
        return tag("p", words("runs.exporting"), " ", tag("span", last, lang="en"), class_="note", role="status")
    if job.state == "done":
        written = WRITTEN.search(lines)
        path = written[1] if written else board.shown(run.path / "export")
        return tag("p", words("runs.exported", path=path), class_="note", role="status")
    why = last.removeprefix("forge-cli: ") or words("runs.lost_why")
    return show_trouble(words, Trouble(words("runs.export_failed"), why, words("runs.fix_export"), lines))


def _job_name(board: Board, run: RunDir) -> str:
    return f"export-{board.shown(run.path)}"
