"""Runs: the table, curves over each other, how recipes differ, and everything about the run that is open."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llmforge.runs import RunDir
from llmforge.webui import launch, run_detail, runs_table
from llmforge.webui.board import Board
from llmforge.webui.curve_chart import Line, curves_chart
from llmforge.webui.curves import smooth, thin
from llmforge.webui.exporting import is_exporting, start_export
from llmforge.webui.index import Index, RunRow, index_of
from llmforge.webui.markup import tag
from llmforge.webui.poll import on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.run_log import FOLLOW, show_log
from llmforge.webui.words import Words, mark, words_of

EVERY_S = 2
SERIES = ("loss", "eval_loss", "lr", "grad_norm", "tokens_per_second")
MOST_POINTS = 2000  # on one chart, all runs together
FEWEST_POINTS = 60  # of one run, however many there are
MOST_LINES = 24
# What a button was answered is soon old news; what went wrong stays.
NOTICE = """
let timer = 0;
watch('value', () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    for (const told of element.querySelectorAll('[role=status]')) told.hidden = true;
  }, 15000);
});
"""


def build(board: Board) -> None:
    """What stands on the page."""
    index = index_of(board)
    view = _View(board, index)
    opened, ticked = gr.State(""), gr.State([])
    timer = gr.Timer(EVERY_S)
    search = gr.Textbox(
        label=mark("runs.search"), placeholder=mark("runs.search_hint"), elem_id="runs-search", max_lines=1,
        visible=False,
    )  # fmt: skip
    table = gr.HTML(js_on_load=runs_table.SCRIPT, elem_id="runs-table")
    with gr.Column(visible=False) as rest:
        with gr.Group(elem_id="runs-chart"):
            with gr.Row():
                series = gr.Dropdown(
                    [(mark(f"runs.series.{name}"), name) for name in SERIES], value="loss", label=mark("runs.series")
                )
                smoothing = gr.Slider(0, 0.99, value=0, step=0.01, label=mark("runs.smoothing"))
            chart = gr.HTML(elem_id="runs-curves", padding=True)
        head = gr.HTML(elem_id="run-head")
        actions = gr.HTML(js_on_load=run_detail.SCRIPT, elem_id="run-actions")
    notice = gr.HTML(js_on_load=NOTICE, elem_id="run-notice")
    with gr.Row(visible=False, elem_id="run-delete") as delete_row:
        typed = gr.Textbox(label=mark("runs.type_name"), max_lines=1, scale=3)
        delete = gr.Button(mark("runs.delete_really"), variant="stop", scale=1)
        cancel = gr.Button(mark("common.cancel"), scale=1)
    with gr.Column(visible=False) as about:
        with gr.Tabs(elem_id="run-tabs"):
            with gr.Tab(mark("runs.tab.log")):
                with gr.Row():
                    log_search = gr.Textbox(label=mark("runs.log_search"), max_lines=1, scale=3)
                    log_level = gr.Checkbox(label=mark("runs.log_problems"), scale=1)
                log = gr.HTML(js_on_load=FOLLOW, elem_id="run-log")
            with gr.Tab(mark("runs.tab.diff")):
                diff = gr.HTML(elem_id="run-diff")
            with gr.Tab(mark("runs.tab.samples")):
                samples = gr.HTML(elem_id="run-samples")
            with gr.Tab(mark("runs.tab.files")):
                files = gr.HTML(elem_id="run-files")
        recipe = RecipeView("runs")

    inputs = [opened, ticked, search, series, smoothing, log_search, log_level]
    outputs = [search, rest, about, table, chart, head, actions, log, diff, samples, files, *recipe.outputs]

    def show(request: gr.Request, *given: Any) -> list[Any]:
        return view.fill(request, *given)

    def start(request: gr.Request) -> list[Any]:
        name = str(request.query_params.get("run", ""))
        row = view.row(name) or view.row("")
        name = row.name if row else ""
        return [name, *view.fill(request, name, [], "", "loss", 0, "", False)]

    def select(request: gr.Request, event: gr.EventData, _: str, *given: Any) -> list[Any]:
        shown = view.fill(request, event.run, *given)
        return [event.run, gr.Row(visible=False), "", *shown]

    def tick(request: gr.Request, event: gr.EventData, name: str, before: list[str], *given: Any) -> list[Any]:
        others = [other for other in before if other != event.run]
        now = [*others, event.run] if event.on else others
        return [now, *view.fill(request, name, now, *given)]

    def act(request: gr.Request, event: gr.EventData, name: str, *given: Any) -> list[Any]:
        told, deleting = view.act(words_of(request), name, event.act)
        return [told, gr.Row(visible=deleting), "", *view.fill(request, name, *given)]

    def really(request: gr.Request, name: str, given: str, *others: Any) -> list[Any]:
        words = words_of(request)
        try:
            launch.delete_run(board, view.run(name), given)
        except Exception as error:
            told = show_trouble(words, trouble_of(words, words("runs.failed.delete"), error))
            return [name, told, gr.Row(visible=True), *view.fill(request, name, *others)]
        left = [row.name for row in index.runs(0) if row.name != name]
        name = left[0] if left else ""
        told = tag("p", words("runs.deleted"), class_="note", role="status")
        return [name, told, gr.Row(visible=False), *view.fill(request, name, *others)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(None, start, None, [opened, *outputs], **quiet)
    table.select(select, inputs, [opened, delete_row, notice, *outputs], trigger_mode="multiple", **quiet)
    # Quick ticks are all taken, one after the other, since each changes what the one before left.
    table.input(
        tick, inputs, [ticked, *outputs], trigger_mode="multiple", concurrency_id="ticks", concurrency_limit=1, **quiet
    )
    actions.select(act, inputs, [notice, delete_row, typed, *outputs], **quiet)
    cancel.click(lambda: gr.Row(visible=False), None, delete_row, **quiet)
    gr.on(
        [delete.click, typed.submit],
        really,
        [opened, typed, *inputs[1:]],
        [opened, notice, delete_row, *outputs],
        **quiet,
    )
    gr.on(
        [search.input, series.input, smoothing.release, log_search.input, log_level.input],
        show,
        inputs,
        outputs,
        trigger_mode="always_last",
        **quiet,
    )
    on_tick(timer, view.fill, inputs, outputs)


class _View:
    """Fills the page from the files."""

    def __init__(self, board: Board, index: Index):
        self.board, self.index, self.curves = board, index, index.curves

    def row(self, name: str) -> RunRow | None:
        """A run by its name; the newest one where none is named."""
        rows = self.index.runs()
        return next((row for row in rows if row.name == name or not name), None)

    def run(self, name: str) -> RunDir:
        """The folder of the run that is open."""
        row = self.row(name)
        return RunDir(self.board.path(row.name if row else name, must_exist=True))

    def fill(
        self, request: gr.Request, name: str, ticked: list[str], search: str, series: str, smoothing: float,
        log_search: str, log_level: bool,
    ) -> list[Any]:  # fmt: skip
        """Values of all outputs."""
        words = words_of(request)
        rows, row = self.index.runs(), self.row(name)
        known = [row.name for row in rows]
        ticked = [each for each in ticked if each in known]
        table = runs_table.runs_table(words, rows, row.name if row else "", ticked, search or "")
        shown = [gr.update(visible=bool(rows)), *[gr.update(visible=row is not None)] * 2, table]
        if row is None:
            return [*shown, *[""] * 9]
        run = self.run(row.name)
        given = run.path / launch.GIVEN
        source = given if given.is_file() else run.recipe_path
        text = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
        devices = launch.launched(run).get("devices") or []
        return [
            *shown,
            self._chart(words, ticked or [row.name], series, smoothing),
            run_detail.head(words, self.board, row, self.curves.of(run.log_path)),
            run_detail.actions(words, row, is_exporting(self.board, run)),
            show_log(words, run, log_search or "", log_level),
            run_detail.diff(words, self.board, ticked),
            run_detail.samples(words, run),
            run_detail.files(words, self.board, run),
            *RecipeView.show(text, launch.command_of(self.board.shown(source), devices)),
        ]

    def _chart(self, words: Words, names: list[str], series: str, smoothing: float) -> str:
        most = max(MOST_POINTS // len(names), FEWEST_POINTS)
        lines = []
        for name in names[:MOST_LINES]:
            found = self.curves.of(RunDir(self.board.root / name).log_path).series
            points = smooth(found.get(series, []), smoothing)
            dots = found.get("eval_loss", []) if series == "loss" else []
            lines.append(Line(name, thin(points, most), thin(dots, most) if len(dots) > 60 else dots))
        told = words("runs.chart_told", series=words(f"runs.series.{series}"), names=", ".join(names[:MOST_LINES]))
        return curves_chart(lines, label=told, empty=words("runs.no_points"), dots_label=words("runs.series.eval_loss"))

    def act(self, words: Words, name: str, act: str) -> tuple[str, bool]:
        """What a button does: (notice, whether the name is to be typed)."""
        if act == "delete":
            return tag("p", words("runs.type_to_delete", name=name.rpartition("/")[2]), class_="note"), True
        does = {
            "stop": launch.stop_run,
            "kill": launch.kill_run,
            "resume": lambda run: launch.resume_run(self.board, run),
            "export": lambda run: start_export(self.board, run),
        }
        try:
            does[act](self.run(name))
        except Exception as error:
            return show_trouble(words, trouble_of(words, words(f"runs.failed.{act}"), error)), False
        self.index.runs(0)
        return tag("p", words(f"runs.told.{act}"), class_="note", role="status"), False
