"""Home: how the machine stands, what runs now, and where to begin."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import gradio as gr

from llmforge.webui.amounts import ago, duration, number
from llmforge.webui.board import Board
from llmforge.webui.choices import dataset_names
from llmforge.webui.doctor import Finding, examine, worst
from llmforge.webui.index import RunRow, index_of
from llmforge.webui.markup import Safe, join, tag
from llmforge.webui.poll import on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.runs_table import badge
from llmforge.webui.sample import FIRST, add_sample
from llmforge.webui.words import Words, mark, words_of

EVERY_S = 3
BEGIN = ("train", "make", "chat")
NEWEST = 5  # runs shown when nothing runs
COMMANDS = "forge-cli runs list\nforge-cli models list"


def build(board: Board) -> None:
    """What stands on the page."""
    index = index_of(board)
    begin = gr.HTML(elem_id="home-begin")
    with gr.Row(visible=False, elem_id="home-sample") as row:
        sample = gr.Button(mark("home.sample"), elem_id="home-sample-button")
    told = gr.HTML(elem_id="home-told")
    jobs = gr.HTML(elem_id="home-jobs")
    lamp = gr.HTML(elem_id="home-lamp")
    command = tag("details", tag("summary", Safe(str(mark("common.show_command")))), tag("pre", COMMANDS))
    gr.HTML(command, elem_id="home-command")

    def fill(request: gr.Request) -> list[Any]:
        words = words_of(request)
        rows = index.runs()
        return [_jobs(words, rows), _lamp(words, examine(words, board, rows))]

    def start(request: gr.Request) -> list[Any]:
        return [_begin(words_of(request)), gr.Row(visible=not dataset_names(board)), *fill(request)]

    def take(request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            added = add_sample(board)
        except Exception as error:
            return [show_trouble(words, trouble_of(words, words("home.sample_failed"), error)), gr.skip()]
        link = tag("a", words("home.sample_next"), href=f"train?data={FIRST[words.language]}", class_="button primary")
        note = tag("p", words("home.sample_added", n=len(added)), " ", link, class_="note", role="status")
        return [note, gr.Row(visible=False)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(None, start, None, [begin, row, jobs, lamp], **quiet)
    sample.click(take, None, [told, row], **quiet)
    on_tick(gr.Timer(EVERY_S), fill, [], [jobs, lamp])


def _begin(words: Words) -> Safe:
    cards = [
        tag(
            "a",
            tag("strong", words(f"common.{name}")),
            tag("span", words(f"home.begin.{name}"), class_="calm"),
            href=name,
            class_="card big",
        )
        for name in BEGIN
    ]
    return tag("div", *cards, class_="cards")


def _jobs(words: Words, rows: list[RunRow]) -> Safe:
    live = [row for row in rows if row.live]
    if not rows:
        return tag("section", tag("h2", words("home.running")), tag("p", words("home.no_runs"), class_="calm"))
    shown = live or rows[:NEWEST]
    title = words("home.running") if live else words("home.newest")
    return tag("section", tag("h2", title), tag("ul", *(_job(words, row) for row in shown), class_="jobs"))


def _job(words: Words, row: RunRow) -> Safe:
    share = f"{100 * row.step // row.total_steps}%" if row.total_steps else ""
    facts = [f"{words('runs.col.loss')} {number(row.loss)}" if row.loss is not None else "", share]
    if row.live and row.remaining_s is not None:
        facts.append(words("home.left", time=duration(words, row.remaining_s)))
    elif row.started:
        facts.append(ago(words, row.started))
    return tag(
        "li",
        tag("a", row.name, href=f"runs?run={quote(row.name)}"),
        " ",
        badge(words, row),
        " ",
        tag("span", " · ".join(fact for fact in facts if fact), class_="calm"),
    )


def _lamp(words: Words, found: list[Finding]) -> Safe:
    level = worst(found)
    rows = [
        tag("tr", tag("th", each.name, scope="row"), tag("td", each.text), tag("td", _sign(words, each.level)))
        for each in found
    ]
    return tag(
        "section",
        tag("h2", words("home.machine")),
        tag("p", tag("span", "", class_=f"lamp {level}", aria_hidden="true"), " ", words(f"home.lamp.{level}")),
        tag("table", tag("tbody", join(*rows)), class_="files"),
    )


def _sign(words: Words, level: str) -> Safe:
    return tag("span", words(f"home.level.{level}"), class_=level)
