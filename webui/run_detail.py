"""What the page shows of one run: how far it is, what went wrong, its log, samples, files, and how recipes differ."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any
from urllib.parse import quote

import psutil

from llmforge.runs import RunDir
from llmforge.webui.amounts import ago, duration, number, size
from llmforge.webui.board import Board
from llmforge.webui.curves import Curve
from llmforge.webui.exporting import show_export
from llmforge.webui.index import RunRow, recipe_of
from llmforge.webui.launch import CONSOLE, launched
from llmforge.webui.markup import Safe, join, tag
from llmforge.webui.problem import Trouble, show_trouble
from llmforge.webui.run_log import last_text
from llmforge.webui.runs_table import badge
from llmforge.webui.sentences import in_words, show_sentence
from llmforge.webui.words import Words

PHASES = ("check", "tokenise", "load", "train", "eval", "save", "done")
SAMPLES = 8
MEMORY = re.compile(r"(?i)out of memory|memory is full|memory runs out")
ACTIONS = ("stop", "kill", "resume", "clone", "chat", "export", "delete")
# Buttons under the numbers: each tells Python which one was pressed.
SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button && !button.disabled) trigger('select', { act: button.dataset.act });
});
"""


def head(words: Words, board: Board, row: RunRow, curve: Curve) -> Safe:
    """Name, state, phases, numbers, alarms, why it failed, and how its export stands."""
    facts = {
        "step": f"{row.step:,} / {row.total_steps:,}" if row.total_steps else "-",
        "loss": number(row.loss),
        "eval": number(row.best_eval),
        "speed": _speed(words, curve) if row.live else "-",
        "left": duration(words, row.remaining_s) if row.live and row.remaining_s is not None else "-",
        "memory": _memory(row),
        "started": ago(words, row.started),
        "took": duration(words, row.took) if row.took and row.state != "queued" else "-",
        "device": ", ".join(launched(RunDir(board.root / row.name)).get("devices") or []) or "-",
    }
    numbers = [tag("div", tag("dt", words(f"runs.fact.{key}")), tag("dd", value)) for key, value in facts.items()]
    share = 100 * row.step / row.total_steps if row.total_steps else 0
    meter = tag(
        "div", tag("div", "", style=f"width:{share:.1f}%"), class_="meter", role="progressbar",
        aria_valuenow=round(share), aria_valuemin=0, aria_valuemax=100, aria_label=words("runs.fact.step"),
    )  # fmt: skip
    return tag(
        "section",
        tag("h2", row.name, " ", badge(words, row)),
        _phases(words, row),
        meter if row.live or 0 < share < 100 else None,
        tag("dl", *numbers, class_="facts"),
        [tag("p", show_sentence(words, alarm), class_="warn alarm") for alarm in row.alarms[-3:]],
        trouble(words, board, row),
        show_export(words, board, RunDir(board.root / row.name)),
        class_="run-head",
        aria_live="off",
    )


def trouble(words: Words, board: Board, row: RunRow) -> Safe | None:
    """Why a run ended early, and what to do."""
    if row.state not in ("failed", "lost", "stopped"):
        return None
    if row.state == "stopped" and not row.error:
        return tag("p", words("runs.can_resume"), class_="note")
    why = row.error or words("runs.lost_why")
    first, _, rest = why.partition("\n")
    first = in_words(words, first)
    what = words(f"runs.ended.{row.state}", name=row.name, why=first)
    if row.state == "stopped":
        return tag("p", what, " ", words("runs.can_resume"), class_="note")
    fix = words("runs.fix_memory") if MEMORY.search(why) else words("runs.fix_resume")
    if row.phase == "check" and row.step == 0 and row.state == "failed":
        fix = words("runs.fix_clone")
    return show_trouble(words, Trouble(what, first, fix, rest or last_text(board.root / row.name / CONSOLE)[-4000:]))


def _phases(words: Words, row: RunRow) -> Safe | None:
    """The phases in their order, the present one marked."""
    if row.state == "queued":
        return tag("p", words("runs.waits"), class_="note", role="status")
    if not row.live:
        return None
    now = PHASES.index(row.phase) if row.phase in PHASES else 0
    steps = [
        tag(
            "li",
            words(f"runs.phase.{name}"),
            class_="past" if number < now else "now" if number == now else None,
            aria_current="step" if number == now else None,
        )
        for number, name in enumerate(PHASES[:-1])
    ]
    return tag("ol", *steps, class_="phases")


def _speed(words: Words, curve: Curve) -> str:
    points = curve.series.get("tokens_per_second")
    return words("runs.tokens_per_s", n=round(points[-1][1])) if points else "-"


def _memory(row: RunRow) -> str:
    if not row.live or not row.pid:
        return "-"
    try:
        return size(psutil.Process(row.pid).memory_info().rss)
    except psutil.Error:
        return "-"


def actions(words: Words, row: RunRow, exporting: bool = False) -> Safe:
    """The buttons; one that cannot work now is off and says why."""
    running = row.live
    possible = {
        "stop": running and row.state != "stopping",
        "kill": running,
        "resume": row.state in ("stopped", "failed", "lost"),
        "clone": True,
        "chat": row.state == "finished" and row.stage != "rm",
        "export": row.state == "finished" and not exporting,
        "delete": not running and not exporting,
    }
    links = {"clone": f"train?clone={quote(row.name)}", "chat": f"chat?run={quote(row.name)}"}
    parts = []
    for act in ACTIONS:
        text, why = words(f"runs.act.{act}"), words(f"runs.act_why.{act}")
        if act in links and possible[act]:
            parts.append(tag("a", text, href=links[act], class_="button", title=why))
        else:
            kind = "button danger" if act in ("kill", "delete") else "button"
            parts.append(
                tag("button", text, type="button", class_=kind, data_act=act, disabled=not possible[act], title=why)
            )
    return tag("div", *parts, class_="actions", role="toolbar", aria_label=words("runs.actions"))


def samples(words: Words, run: RunDir) -> Safe:
    """The first rows of generated_predictions.jsonl: what was asked, expected, and answered."""
    rows: list[Any] = []
    with contextlib.suppress(OSError, ValueError), open(run.predictions_path, encoding="utf-8") as file:
        rows.extend(json.loads(line) for line in islice(file, SAMPLES))
    if not rows:
        return tag("div", tag("p", words("runs.no_samples"), class_="calm empty"))
    names = ("prompt", "label", "predict")
    return join(
        [
            tag(
                "dl",
                [
                    (tag("dt", words(f"runs.sample.{name}")), tag("dd", str(row.get(name, ""))[:2000]))
                    for name in names
                    if row.get(name)
                ],
                class_="sample",
            )
            for row in rows
            if isinstance(row, dict)
        ]
    )


def files(words: Words, board: Board, run: RunDir) -> Safe:
    """The folder's files with their sizes; each can be downloaded."""
    found = sorted(path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith("."))[:300]
    rows = [
        tag(
            "tr",
            tag(
                "td",
                tag(
                    "a", str(path.relative_to(run.path)), href=f"gradio_api/file={quote(str(path))}", download=path.name
                ),
            ),
            tag("td", size(path.stat().st_size), class_="number"),
        )
        for path in found
    ]
    return tag("table", tag("tbody", *rows), class_="files")


def diff(words: Words, board: Board, names: Sequence[str]) -> Safe:
    """Keys whose values differ between the recipes of some runs."""
    if len(names) < 2:
        return tag("p", words("runs.tick_two"), class_="calm empty")
    recipes = [recipe_of(RunDir(board.root / name)) for name in names]
    keys = sorted({key for recipe in recipes for key in recipe})
    rows = []
    for key in keys:
        values = [_shown(recipe.get(key)) for recipe in recipes]
        if len(set(values)) > 1:
            rows.append(tag("tr", tag("th", key, scope="row"), *(tag("td", value) for value in values)))
    if not rows:
        return tag("p", words("runs.same_recipe"), class_="calm empty")
    top = tag("tr", tag("th", words("runs.key"), scope="col"), *(tag("th", name, scope="col") for name in names))
    return tag(
        "div", tag("table", tag("thead", top), tag("tbody", *rows), class_="diff"), class_="scroll", tabindex="0",
        role="region", aria_label=words("runs.tab.diff"),
    )  # fmt: skip


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
