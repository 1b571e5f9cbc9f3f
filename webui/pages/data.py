"""The page Data: what there is to learn from, how rows look to the model, what is wrong with them, and new files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from llmforge.data.example import RowReport
from llmforge.data.inspect import inspect_set, measure, natural_stage
from llmforge.data.prepare import Reading
from llmforge.data.registry import resolve_dataset
from llmforge.errors import ForgeError, RecipeError
from llmforge.webui import data_table
from llmforge.webui.board import Board
from llmforge.webui.data_source import KINDS, NEEDED, PARTS, SHOWN, Meaning, Source, add, look, preview
from llmforge.webui.data_view import Reader, show_entries, show_examples, show_findings
from llmforge.webui.markup import Safe, tag
from llmforge.webui.poll import on_load
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.uploads import take_upload
from llmforge.webui.words import Words, mark, words_of

PICK = (
    "element.addEventListener('click', (event) => { const button = event.target.closest('[data-pick]');"
    " if (button) trigger('select', { value: button.dataset.pick }); });"
)
CUTOFF = 2048


def build(board: Board) -> None:
    """What stands on the page."""
    with gr.Tabs():
        with gr.Tab(mark("data.tab_sets"), id="sets"):
            _sets(board)
        with gr.Tab(mark("data.tab_add"), id="add"):
            _adding(board)


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
    with gr.Row():
        show = gr.Button(mark("data.show"), elem_id="data-show")
        check = gr.Button(mark("data.check"), variant="primary", elem_id="data-check")
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
        yield [name, listed(request, name)[0], tag("p", words("data.looking"), role="status"), *[gr.skip()] * 2]
        yield [name, gr.skip(), *_shown(board, words, name, model, cutoff, start)]

    def picked(
        model: str, cutoff: float, start: float, request: gr.Request, event: gr.EventData
    ) -> Iterator[list[Any]]:
        yield from pick(str(event.value), model, cutoff, start, request)

    def checked(name: str, model: str, cutoff: float, request: gr.Request) -> Iterator[list[Any]]:
        words = words_of(request)
        yield [gr.skip(), tag("p", words("data.reading"), role="status"), *[gr.skip()] * 2]
        result = _checked(board, words, name, model, cutoff)
        yield [listed(request, name)[0], *result]

    settings = [model, cutoff, start]
    shown = [view, *recipe.outputs]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [table, model])
    table.select(picked, settings, [chosen, table, *shown], **quiet)
    show.click(pick, [chosen, *settings], [chosen, table, *shown], **quiet)
    check.click(checked, [chosen, model, cutoff], [table, *shown], **quiet)


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
        html = show_examples(words, found, report, Reader.of(model, _cutoff(words, cutoff)))
    except Exception as error:
        html = show_trouble(words, trouble_of(words, words("data.failed_show"), error))
    command = _command("data show", name, model, cutoff) + f" --rows {SHOWN}"
    return [html, *RecipeView.show(_recipe(name, model, cutoff), command)]


def _checked(board: Board, words: Words, name: str, model: str, cutoff: float) -> list[Any]:
    """What a check of all rows finds, and the command that finds the same."""
    if not name:
        return [tag("p", words("data.nothing_chosen"), class_="warn"), *RecipeView.show("", "")]
    try:
        entry = resolve_dataset(name, board.data)
        reader = Reader.of(model, _cutoff(words, cutoff))
        found = inspect_set(Reading(entry, natural_stage(entry)))
        if reader:
            options = replace(reader.options, stage="pt" if found.stage == "pt" else "sft")
            found.lengths = measure(found, reader.template, reader.tokenizer, options)
        data_table.remember(board, entry, found.report.rows_in, len(found.report.rejected))
        html = show_findings(words, found)
    except Exception as error:
        html = show_trouble(words, trouble_of(words, words("data.failed_check"), error))
    return [html, *RecipeView.show(_recipe(name, model, cutoff), _command("data check", name, model, cutoff))]


def _cutoff(words: Words, value: float | None) -> int:
    if not value or value < 1:
        raise RecipeError(f"cutoff_len: {words('data.bad_cutoff')}")
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


def _adding(board: Board) -> None:
    source = gr.State(None)
    gr.HTML(tag("p", Safe(str(mark("data.add_intro"))), class_="calm"))
    with gr.Row():
        upload = gr.File(label=mark("data.upload"), type="filepath", elem_id="data-upload", height=130)
        with gr.Column():
            path = gr.Textbox(label=mark("data.path"), placeholder=mark("data.path_hint"), elem_id="data-path")
            look_at = gr.Button(mark("data.look"), elem_id="data-look")
    said = gr.HTML(elem_id="data-said")
    with gr.Column(visible=False, elem_id="data-mapping") as form:
        with gr.Row():
            name = gr.Textbox(label=mark("data.name"), elem_id="data-name")
            kind = gr.Dropdown(list(KINDS), label=mark("data.holds"), elem_id="data-kind")
        with gr.Row():
            columns = [
                gr.Dropdown(
                    [], label=mark(f"data.part_{part}"), visible=False, elem_id=f"data-part-{part}", min_width=220
                )
                for part in PARTS
            ]
        save = gr.Button(mark("data.add"), variant="primary", elem_id="data-add")
        result = gr.HTML(elem_id="data-preview")
    recipe = RecipeView("data-add")

    def show_form(words: Words, found: Source, meaning: Meaning) -> list[Any]:
        none = (words("data.none"), "")
        drops = []
        for part in PARTS:
            is_needed = part in NEEDED[meaning.kind]
            choices = [*([] if is_needed else [none]), *((column, column) for column in found.columns)]
            drops.append(
                gr.Dropdown(
                    choices=choices,
                    value=meaning.columns.get(part) or (None if is_needed else ""),
                    visible=part in KINDS[meaning.kind],
                )
            )
        return drops

    def looked(sent: str | None, typed: str, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            if not sent and not typed.strip():
                raise RecipeError(words("data.no_file"))
            place = take_upload(board, sent) if sent else board.path(typed.strip(), must_exist=True)
            found = look(place)
        except Exception as error:
            html = show_trouble(words, trouble_of(words, words("data.failed_look"), error))
            hidden = [gr.skip()] * len(PARTS)
            return [None, html, gr.Column(visible=False), gr.skip(), gr.skip(), *hidden, "", gr.skip(), gr.skip()]
        told = tag("p", words("data.found", name=place.name, columns=len(found.columns)), role="status")
        kinds = gr.Dropdown(choices=[(words(f"data.kind_{one}"), one) for one in KINDS], value=found.guess.kind)
        drops = show_form(words, found, found.guess)
        named = place.stem.replace(" ", "_")
        html, yaml, command = _previewed(board, words, found, found.guess, named)
        return [found, told, gr.Column(visible=True), named, kinds, *drops, html, yaml, command]

    def other_kind(found: Source | None, kind: str, name: str, request: gr.Request, *given: str) -> list[Any]:
        if found is None:
            return [gr.skip()] * (len(PARTS) + 3)
        words = words_of(request)
        known = {part: column for part, column in zip(PARTS, given, strict=True) if column}
        meaning = Meaning(kind, found.guess.columns if found.guess.kind == kind else known)
        return [*show_form(words, found, meaning), *_previewed(board, words, found, meaning, name)]

    def mapped(found: Source | None, kind: str, name: str, request: gr.Request, *given: str) -> list[Any]:
        if found is None:
            return [gr.skip()] * 3
        meaning = Meaning(kind, {part: column for part, column in zip(PARTS, given, strict=True) if column})
        return _previewed(board, words_of(request), found, meaning, name)

    def added(found: Source | None, kind: str, name: str, request: gr.Request, *given: str) -> list[Any]:
        words = words_of(request)
        meaning = Meaning(kind, {part: column for part, column in zip(PARTS, given, strict=True) if column})
        try:
            if found is None:
                raise RecipeError(words("data.no_file"))
            name, _ = add(board, name, found, meaning)
        except Exception as error:
            return [show_trouble(words, trouble_of(words, words("data.failed_add"), error)), gr.skip()]
        done = tag("p", words("data.added", name=name), class_="good", role="status")
        return [done, gr.Column(visible=False)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    shown = [result, *recipe.outputs]
    filled = [source, said, form, name, kind, *columns, *shown]
    gr.on([look_at.click, path.submit, upload.upload], looked, [upload, path], filled, **quiet)
    inputs = [source, kind, name, *columns]
    kind.input(other_kind, inputs, [*columns, *shown], **quiet)
    for column in columns:
        column.input(mapped, inputs, shown, **quiet)
    save.click(added, inputs, [said, form], **quiet)


def _previewed(board: Board, words: Words, found: Source, meaning: Meaning, name: str) -> list[Any]:
    """The first rows as this meaning makes them, with the entry and the command that adds it."""
    try:
        entry = meaning.as_entry(str(found.path), found.head[0])
        rows, report = preview(entry, Path("/"))
        html = tag("div", tag("h3", words("data.preview")), show_examples(words, rows, report, None, legend=False))
    except ForgeError as error:
        html = show_trouble(words, trouble_of(words, words("data.failed_preview"), error))
        return [html, *RecipeView.show("", "")]
    shown = {**entry, "file_name": board.shown(found.path)}
    command = shlex.join(["forge-cli", "data", "add", name or "NAME", board.shown(found.path), "--register", "data"])
    return [html, *RecipeView.show(_yaml({name or "NAME": shown}), command)]


def _yaml(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    return text
