"""How far a recipe that makes data is, as HTML: counters, causes of rejection, newest rows, log, estimate."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from llmforge.errors import ForgeError
from llmforge.webui.amounts import duration
from llmforge.webui.board import Board
from llmforge.webui.jobs import Job, find_job
from llmforge.webui.making import Progress, folder_of, values_of
from llmforge.webui.markup import Safe, tag
from llmforge.webui.words import Words

COUNTS = ("answers", "parsed", "schema_ok", "checks_ok", "duplicate", "accepted", "rejected", "open")
_followed: dict[str, Progress] = {}  # ledgers that pages look at, each read once


def job_name(place: str) -> str:
    """The job that makes the rows of a recipe."""
    return f"make-{place}"


def pace(board: Board, place: str, text: str) -> float | None:
    """Seconds a row took so far; None before a first one."""
    job, work = find_job(board, job_name(place)), folder_of(board, text)
    if job is None or work is None:
        return None
    progress = _followed.setdefault(str(work.ledger_path), Progress(work.ledger_path))
    progress.refresh()
    done = sum(row.is_done for row in progress.history.rows.values())
    return job.took_s / done if done else None


def show_estimate(words: Words, found: dict[str, Any], teacher: Any, a_row: float | None, rows: int) -> Safe:
    """Tokens, time and money."""
    measured = found["measured_rows"]
    basis = words("make.basis_measured", n=measured) if measured else words("make.basis_guessed")
    tokens = {"tokens_in": round(found["tokens_in_per_row"]), "tokens_out": round(found["tokens_out_per_row"])}
    lines = [tag("p", words("make.estimate_line", rows=found["rows"], basis=basis, **tokens))]
    if a_row:
        lines.append(tag("p", words("make.estimate_time", time=duration(words, a_row * rows))))
    if teacher.base_url and (usd := found["usd"].get(teacher.model)) is not None:
        lines.append(tag("p", words("make.estimate_cost", name=teacher.model, usd=f"{usd:.4f}")))
    elif not teacher.base_url:
        lines.append(tag("p", words("make.estimate_free"), class_="good"))
        priced = sorted(found["usd"].items(), key=lambda item: item[1])
        lines.append(
            tag(
                "ul", *(tag("li", words("make.estimate_cost", name=name, usd=f"{usd:.4f}")) for name, usd in priced[:5])
            )
        )
    if teacher.budget_usd is not None:
        lines.append(tag("p", words("make.estimate_budget", usd=f"{teacher.budget_usd:g}")))
    return tag("div", *lines, class_="card")


def show_status(board: Board, words: Words, place: str, text: str) -> Safe:
    """How far the rows are, why some were rejected, the newest, and the log."""
    job, work = find_job(board, job_name(place)), folder_of(board, text)
    if work is None or (job is None and not work.ledger_path.is_file()):
        return tag("p", words("make.state_draft"), class_="calm")
    progress = _followed.setdefault(str(work.ledger_path), Progress(work.ledger_path))
    progress.refresh()
    total = 0
    with contextlib.suppress(ForgeError):
        total = int(values_of(text).get("rows") or 0)
    counts = progress.counts(total)
    done, rows = counts["accepted"] + counts["rejected"], counts["rows"]
    told = words("make.of_rows", done=done, all=rows)
    tiles = [_tile(words, name, f"{counts[name]:,}") for name in COUNTS]
    tiles.append(_tile(words, "tokens", f"{counts['tokens_in'] + counts['tokens_out']:,}"))
    tiles.append(_tile(words, "cost_usd", f"{counts['cost_usd']:.4f}"))
    causes = [tag("li", f"{cause}: {count:,}") for cause, count in list(counts["causes"].items())[:8]]
    newest = [
        tag(
            "article",
            tag("p", f"{record['instruction']}\n{record['input']}".strip()),
            tag("p", tag("strong", _answer(record["output"]))),
            class_="card",
        )
        for record in progress.newest()
    ]
    bar = tag("progress", value=done, max=max(rows, 1), aria_label=told)
    review = (
        tag("a", words("make.review"), href=f"review?source={place}", class_="plain") if counts["accepted"] else None
    )
    return tag(
        "div",
        _state(words, job),
        bar,
        tag("p", told, " ", review),
        tag("div", *tiles, class_="tiles"),
        tag("details", tag("summary", words("make.causes")), tag("ul", *causes)) if causes else None,
        tag("h3", words("make.newest")) if newest else None,
        tag("div", *newest, class_="rows made"),
        tag("details", tag("summary", words("make.log")), tag("pre", job.log(20))) if job else None,
        _converted(board, words, place),
        class_="progress",
    )


def _state(words: Words, job: Job | None) -> Safe:
    if job is None:
        return tag("p", words("make.state_draft"), class_="calm")
    state = job.state
    if state == "running":
        return tag("p", words("make.state_running", time=_clock(job.started_at)), role="status")
    if state == "paused":
        why = job.log(1).removeprefix("forge-cli: ")
        return tag("p", words("make.state_paused", why=why), class_="warn", role="status")
    kind = {"done": "good", "failed": "bad", "lost": "bad"}.get(state, "calm")
    log = tag("pre", job.log(8)) if state == "failed" else None
    return tag("div", tag("p", words(f"make.state_{state}"), class_=kind, role="status"), log)


def _converted(board: Board, words: Words, place: str) -> Safe | None:
    job = find_job(board, f"{job_name(place)}-convert")
    if job is None:
        return None
    kind = {"done": "good", "failed": "bad"}.get(job.state, "calm")
    state = words(f"make.state_{job.state}", time=_clock(job.started_at), why=job.log(1))
    told = words("make.converted", state=state)
    return tag("div", tag("p", told, class_=kind), tag("pre", job.log(8)))


def _tile(words: Words, name: str, value: str) -> Safe:
    return tag("div", tag("strong", value), tag("span", words(f"make.count_{name}")), class_="tile")


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _answer(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
