"""The tab Add data: a file is looked at, its columns are mapped with a preview, and it is added to the project."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from llmforge.errors import ForgeError
from llmforge.webui.board import Board
from llmforge.webui.data_source import KINDS, NEEDED, PARTS, Meaning, Source, add, look, preview
from llmforge.webui.data_view import link_to_use, show_examples
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.refusal import Refusal
from llmforge.webui.uploads import take_upload
from llmforge.webui.words import Words, mark, words_of

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def draw_adding(board: Board) -> None:
    """What stands in the tab."""
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

    def looked(sent: str | None, typed: str, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            if not sent and not typed.strip():
                raise Refusal("data.no_file")
            place = take_upload(board, sent) if sent else board.path(typed.strip(), must_exist=True)
            found = look(place)
        except Exception as error:
            html = show_trouble(words, trouble_of(words, words("data.failed_look"), error))
            hidden = [gr.skip()] * len(PARTS)
            return [None, html, gr.Column(visible=False), gr.skip(), gr.skip(), *hidden, "", gr.skip(), gr.skip()]
        told = tag("p", words("data.found", name=place.name, columns=len(found.columns)), role="status")
        kinds = gr.Dropdown(choices=[(words(f"data.kind_{one}"), one) for one in KINDS], value=found.guess.kind)
        named = place.stem.replace(" ", "_")
        shown, wrong = _previewed(board, words, found, found.guess, named)
        drops = _drops(words, found, found.guess, wrong)
        return [
            found,
            told,
            gr.Column(visible=True),
            gr.update(value=named, **_at("name", words, [])),
            kinds,
            *drops,
            *shown,
        ]

    def other_kind(found: Source | None, kind: str, name: str, request: gr.Request, *given: str) -> list[Any]:
        if found is None:
            return [gr.skip()] * (len(PARTS) + 3)
        words, known = words_of(request), _named(given)
        meaning = Meaning(kind, found.guess.columns if found.guess.kind == kind else known)
        shown, wrong = _previewed(board, words, found, meaning, name)
        return [*_drops(words, found, meaning, wrong), *shown]

    def mapped(found: Source | None, kind: str, name: str, request: gr.Request, *given: str) -> list[Any]:
        if found is None:
            return [gr.skip()] * (len(PARTS) + 3)
        words = words_of(request)
        shown, wrong = _previewed(board, words, found, Meaning(kind, _named(given)), name)
        return [*(gr.update(**_at(part, words, wrong)) for part in PARTS), *shown]

    def added(found: Source | None, kind: str, name: str, request: gr.Request, *given: str) -> list[Any]:
        words = words_of(request)
        try:
            if found is None:
                raise Refusal("data.no_file")
            name, _ = add(board, name, found, Meaning(kind, _named(given)))
        except Exception as error:
            wrong = [error] if isinstance(error, Refusal) else []
            html = show_trouble(words, trouble_of(words, words("data.failed_add"), error))
            return [html, gr.skip(), gr.update(**_at("name", words, wrong))]
        done = tag("p", words("data.added", name=name), " ", link_to_use(words, name), class_="good", role="status")
        return [done, gr.Column(visible=False), gr.skip()]

    shown = [result, *recipe.outputs]
    filled = [source, said, form, name, kind, *columns, *shown]
    gr.on([look_at.click, path.submit, upload.upload], looked, [upload, path], filled, **QUIET)
    inputs = [source, kind, name, *columns]
    kind.input(other_kind, inputs, [*columns, *shown], **QUIET)
    for column in columns:
        column.input(mapped, inputs, [*columns, *shown], **QUIET)
    save.click(added, inputs, [said, form, name], **QUIET)


def _named(given: tuple[str, ...]) -> dict[str, str]:
    """The column of each part that has one."""
    return {part: column for part, column in zip(PARTS, given, strict=True) if column}


def _drops(words: Words, found: Source, meaning: Meaning, wrong: list[Refusal]) -> list[Any]:
    """The fields of all parts: those of the kind are shown, with the file's columns to choose from."""
    none = (words("data.none"), "")
    drops = []
    for part in PARTS:
        is_needed = part in NEEDED[meaning.kind]
        choices = [*([] if is_needed else [none]), *((column, column) for column in found.columns)]
        value = meaning.columns.get(part) or (None if is_needed else "")
        is_there = part in KINDS[meaning.kind]
        drops.append(gr.update(choices=choices, value=value, visible=is_there, **_at(part, words, wrong)))
    return drops


def _at(field: str, words: Words, wrong: list[Refusal]) -> dict[str, Any]:
    """What is said under a field: what is wrong with it, else nothing."""
    mine = [one.said(words) for one in wrong if one.field == field]
    return {"info": " ".join(mine), "elem_classes": ["wrong"] if mine else []}


def _previewed(
    board: Board, words: Words, found: Source, meaning: Meaning, name: str
) -> tuple[list[Any], list[Refusal]]:
    """(the first rows as this meaning makes them, the entry and the command that adds it; what is wrong at fields)."""
    if wrong := meaning.wrong():
        return ["", *RecipeView.show("", "")], wrong
    try:
        entry = meaning.as_entry(str(found.path), found.head[0])
        rows, report = preview(entry, Path("/"))
    except ForgeError as error:
        html = show_trouble(words, trouble_of(words, words("data.failed_preview"), error))
        return [html, *RecipeView.show("", "")], []
    html = tag("div", tag("h3", words("data.preview")), show_examples(words, rows, report, None, legend=False))
    text = yaml.safe_dump(
        {name or "NAME": {**entry, "file_name": board.shown(found.path)}}, allow_unicode=True, sort_keys=False
    )
    command = shlex.join(["forge-cli", "data", "add", name or "NAME", board.shown(found.path), "--register", "data"])
    return [html, *RecipeView.show(text, command)], []
