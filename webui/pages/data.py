"""The page Data: what there is to learn from, how rows look to the model, what is wrong with them, and new files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import gradio as gr

from llmforge.data.example import RowReport
from llmforge.data.inspect import inspect_set, measure, natural_stage
from llmforge.data.prepare import Reading
from llmforge.data.registry import resolve_dataset
from llmforge.errors import ForgeError
from llmforge.webui import data_table
from llmforge.webui.board import Board
from llmforge.webui.data_adding import draw_adding
from llmforge.webui.data_copy import save_usable
from llmforge.webui.data_source import SHOWN
from llmforge.webui.data_view import Reader, link_to_use, show_entries, show_examples, show_findings
from llmforge.webui.markup import PICK, tag
from llmforge.webui.poll import on_load
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.refusal import Refusal
from llmforge.webui.words import Words, mark, words_of

CUTOFF = 2048


def build(board: Board) -> None:
    """What stands on the page."""
    with gr.Tabs():
        with gr.Tab(mark("data.tab_sets"), id="sets"):
            _sets(board)
        with gr.Tab(mark("data.tab_add"), id="add"):
            draw_adding(board)


def _sets(board: Board) -> None:
    chosen = gr.State("")
    table = gr.HTML(js_on_load=PICK, elem_id="data-table")
    with gr.Row():
        model = gr.Dropdown(
            [""], value="", label=mark("data.model"), info=mark("data.model_info"), allow_custom_value=True,
            elem_id="data-model", scale=3,
        )  # fmt: skip
        cutoff = gr.Number(CUTOFF, label=mark("data.cutoff"), minimum=1, precision=0, elem_id="data-cutoff", scale=1)
        start = gr.Number(1, label=mark("data.from_row"), minimum=1, precision=0, elem_id="data-from", scale=1)
    with gr.Row(elem_classes="actions"):
        check = gr.Button(mark("data.check"), variant="primary", elem_id="data-check", size="sm")
        show = gr.Button(mark("data.show"), elem_id="data-show", size="sm")
        copy = gr.Button(mark("data.copy"), visible=False, elem_id="data-copy", size="sm")
    view = gr.HTML(elem_id="data-view")
    recipe = RecipeView("data")

    def listed(request: gr.Request, name: str) -> list[Any]:
        words = words_of(request)
        try:
            found = data_table.lines(board, words)
        except ForgeError as error:
            return [show_trouble(words, trouble_of(words, words("data.failed_list"), error)), gr.skip()]
        shown = show_entries(words, found, name) if found else tag("p", words("data.empty"))
        return [tag("div", tag("p", words("data.intro"), class_="calm"), shown), gr.skip()]

    def opened(request: gr.Request) -> list[Any]:
        models = data_table.known_models(board)
        return [listed(request, "")[0], gr.Dropdown(choices=["", *models], value=models[0] if models else "")]

    def pick(name: str, model: str, cutoff: float, start: float, request: gr.Request) -> Iterator[list[Any]]:
        words = words_of(request)
        looking = tag("p", words("data.looking"), role="status")
        yield [name, listed(request, name)[0], gr.Button(visible=False), looking, *[gr.skip()] * 2]
        yield [name, gr.skip(), gr.skip(), *_shown(board, words, name, model, cutoff, start)]

    def picked(
        model: str, cutoff: float, start: float, request: gr.Request, event: gr.EventData
    ) -> Iterator[list[Any]]:
        yield from pick(str(event.value), model, cutoff, start, request)

    def checked(name: str, model: str, cutoff: float, request: gr.Request) -> Iterator[list[Any]]:
        words = words_of(request)
        yield [gr.skip(), gr.skip(), tag("p", words("data.reading"), role="status"), *[gr.skip()] * 2]
        num_bad, *result = _checked(board, words, name, model, cutoff)
        yield [listed(request, name)[0], gr.Button(visible=num_bad > 0), *result]

    def copied(name: str, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            new, count = save_usable(board, name)
        except Exception as error:
            return [gr.skip(), show_trouble(words, trouble_of(words, words("data.failed_copy"), error))]
        told = tag("p", words("data.copied", name=new, n=count), class_="good", role="status")
        return [listed(request, name)[0], told]

    settings = [model, cutoff, start]
    shown = [view, *recipe.outputs]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [table, model])
    table.select(picked, settings, [chosen, table, copy, *shown], **quiet)
    show.click(pick, [chosen, *settings], [chosen, table, copy, *shown], **quiet)
    check.click(checked, [chosen, model, cutoff], [table, copy, *shown], **quiet)
    copy.click(copied, chosen, [table, view], **quiet)


def _shown(board: Board, words: Words, name: str, model: str, cutoff: float, start: float) -> list[Any]:
    """The rows of a data set from `start` on, with the entry and the command that shows the same."""
    if not name:
        return [tag("p", words("data.nothing_chosen"), class_="warn"), *RecipeView.show("", "")]
    try:
        entry = resolve_dataset(name, board.data)
        report = RowReport("show")
        rows = Reading(entry, natural_stage(entry)).examples(report)
        first = max(int(start or 1), 1)
        found = list(islice((row for row in rows if row.source.row >= first), SHOWN))
        report.rejected = [one for one in report.rejected if one[0].row >= first]
        html = show_examples(words, found, report, Reader.of(model, _cutoff(cutoff)))
    except Exception as error:
        html = show_trouble(words, trouble_of(words, words("data.failed_show"), error))
    command = _command("data show", name, model, cutoff) + f" --rows {SHOWN}"
    return [html, *RecipeView.show(_recipe(name, model, cutoff), command)]


def _checked(board: Board, words: Words, name: str, model: str, cutoff: float) -> list[Any]:
    """How many rows cannot be used; what a check of all rows finds, and the command that finds the same."""
    if not name:
        return [0, tag("p", words("data.nothing_chosen"), class_="warn"), *RecipeView.show("", "")]
    num_bad = 0
    try:
        entry = resolve_dataset(name, board.data)
        reader = Reader.of(model, _cutoff(cutoff))
        found = inspect_set(Reading(entry, natural_stage(entry)))
        if reader:
            options = replace(reader.options, stage="pt" if found.stage == "pt" else "sft")
            found.lengths = measure(found, reader.template, reader.tokenizer, options)
        num_bad = len(found.report.rejected)
        data_table.remember(board, entry, found.report.rows_in, num_bad)
        html = show_findings(words, found)
        if found.report.rows_out:
            html = tag("div", html, tag("p", link_to_use(words, name)))
    except Exception as error:
        html = show_trouble(words, trouble_of(words, words("data.failed_check"), error))
    command = _command("data check", name, model, cutoff)
    return [num_bad, html, *RecipeView.show(_recipe(name, model, cutoff), command)]


def _cutoff(value: float | None) -> int:
    if not value or value < 1:
        raise Refusal("data.bad_cutoff", "cutoff")
    return int(value)


def _recipe(name: str, model: str, cutoff: float) -> str:
    lines = [f"dataset: {name}", f"cutoff_len: {int(cutoff or CUTOFF)}"]
    return "\n".join([f"model_name_or_path: {model}", *lines] if model else lines) + "\n"


def _command(what: str, name: str, model: str, cutoff: float) -> str:
    words = [
        f"dataset={name}",
        *([f"model_name_or_path={model}"] if model else []),
        f"cutoff_len={int(cutoff or CUTOFF)}",
    ]
    return shlex.join(["forge-cli", *what.split(), *words])
