"""The page Make data: a recipe as form and text, a preview, what it costs, and a run that goes on without the page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from llmforge.datagen.generate import estimate
from llmforge.errors import ForgeError, RecipeError
from llmforge.webui.board import Board
from llmforge.webui.data_table import known_models
from llmforge.webui.jobs import find_job, start_job
from llmforge.webui.making import (
    FIELDS,
    Draft,
    fields_of,
    new_draft,
    open_draft,
    read_recipe,
    save_draft,
    with_field,
)
from llmforge.webui.making_check import FIX, problems_of, show_problems, told
from llmforge.webui.making_lines import LINES, from_lines
from llmforge.webui.making_view import job_name, pace, show_estimate, show_status
from llmforge.webui.markup import Safe, tag
from llmforge.webui.poll import on_load, on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.recipes_here import dataset_recipes
from llmforge.webui.refusal import Refusal
from llmforge.webui.words import mark, words_of
from llmforge.webui.wrong import Wrong

NUMBERS = ("rows", "teacher.temperature", "teacher.max_tokens", "teacher.parallel", "teacher.budget_usd",
           "teacher.budget_tokens")  # fmt: skip
WHOLE = ("rows", "teacher.max_tokens", "teacher.parallel", "teacher.budget_tokens")
ACTIONS = ("check", "estimate", "preview", "resume", "stop", "convert")
PREVIEWED = 3
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build(board: Board) -> None:
    """What stands on the page."""
    _Page(board).build()


class _Page:
    """`text` is the recipe; the fields are views of it, and prompt and schema are files that it names."""

    def __init__(self, board: Board):
        self.board = board

    def build(self) -> None:
        self.path = gr.State("")
        self.problems = gr.State([])  # what the last check found
        gr.HTML(tag("p", Safe(str(mark("make.intro"))), class_="calm"))
        with gr.Row():
            self.recipe = gr.Dropdown(
                [], label=mark("make.recipe"), info=mark("make.recipe_info"), elem_id="make-recipe", scale=3
            )
            self.fresh = gr.Textbox(label=mark("make.new_name"), elem_id="make-new-name", scale=2)
            self.new = gr.Button(mark("make.new"), elem_id="make-new", scale=0, min_width=100)
        self.said = gr.HTML(elem_id="make-said")
        with gr.Column(visible=False, elem_id="make-form") as self.form:
            with gr.Row():
                self.fields = {key: _field(key) for key in FIELDS[:4]}
            with gr.Row():
                self.fields |= {key: _field(key) for key in FIELDS[4:]}
            with gr.Row():
                self.fields |= {
                    key: gr.Textbox(
                        label=mark(f"make.field_{key}"), placeholder=mark(f"make.hint_{key}"), lines=3, max_lines=12,
                        elem_id=f"make-{key}",
                    )
                    for key in LINES
                }  # fmt: skip
            with gr.Row():
                self.prompt = gr.Textbox(label=mark("make.prompt"), lines=9, max_lines=20, elem_id="make-prompt")
                self.schema = gr.Code(
                    language="json", label=mark("make.schema"), lines=9, max_lines=20, elem_id="make-schema", buttons=[]
                )
            with gr.Accordion(mark("make.text"), open=False, elem_id="make-text"):
                self.text = gr.Code(language="yaml", label="YAML", lines=12, max_lines=40, buttons=[])
            with gr.Row(elem_classes="actions"):
                self.buttons = {
                    name: gr.Button(
                        mark(f"make.{name}"), size="sm", variant="primary" if name == "resume" else "secondary",
                        elem_id=f"make-{name}",
                    )
                    for name in ACTIONS
                }  # fmt: skip
            self.result = gr.HTML(js_on_load=FIX, elem_id="make-result")
            self.status = gr.HTML(elem_id="make-status")
        self.view = RecipeView("make")
        self._wire()

    def _wire(self) -> None:
        fields = list(self.fields.values())
        everything = [*fields, self.prompt, self.schema, self.text]
        opened = [self.path, self.said, self.form, *everything, self.result, *self.view.outputs]
        on_load(self._listed, [self.recipe, self.fields["teacher.model"]])
        self.recipe.change(self._loaded, self.recipe, opened, **QUIET)
        gr.on([self.new.click, self.fresh.submit], self._begun, self.fresh, opened, **QUIET)
        for key, field in self.fields.items():
            field.input(_typed(key), [field, self.text], [self.text, self.view.recipe, field], **QUIET)
        self.text.input(_retyped, self.text, [*fields, self.view.recipe], **QUIET)
        inputs = [self.path, self.prompt, self.schema, self.text, self.fields["slots"]]
        for name in ("check", "estimate", "preview", "resume"):
            self.buttons[name].click(
                self._action(name), inputs, [self.result, self.problems, *fields, self.prompt], **QUIET
            )
        fixed = [self.text, *fields, self.view.recipe, self.result]
        self.result.select(_fixed, [self.problems, self.text], fixed, **QUIET)
        self.buttons["convert"].click(self._converted, self.path, self.result, **QUIET)
        self.buttons["stop"].click(self._stopped, self.path, None, **QUIET)
        on_tick(gr.Timer(2), self._standing, [self.path, self.text], [self.status])

    # Opening a recipe

    def _listed(self, request: gr.Request) -> list[Any]:
        wanted = request.query_params.get("recipe")
        models = ["", *known_models(self.board)]
        return [gr.Dropdown(choices=dataset_recipes(self.board), value=wanted), gr.Dropdown(choices=models)]

    def _loaded(self, name: str | None, request: gr.Request) -> list[Any]:
        if not name:
            return [gr.skip()] * self._num_opened
        return self._shown(request, lambda: open_draft(self.board, name))

    def _begun(self, name: str, request: gr.Request) -> list[Any]:
        return self._shown(request, lambda: new_draft(self.board, name.strip()))

    def _shown(self, request: gr.Request, make: Callable[[], Draft]) -> list[Any]:
        words = words_of(request)
        try:
            draft = make()
        except Exception as error:
            wrong = show_trouble(words, trouble_of(words, words("make.failed_open"), error))
            return [gr.skip(), wrong, *[gr.skip()] * (self._num_opened - 2)]
        command = shlex.join(["forge-cli", "data", "generate", draft.path])
        values = [gr.update(value=value, **_under("")) for value in fields_of(draft.text)]
        shown = [*values, draft.prompt, draft.schema, draft.text]
        return [draft.path, "", gr.Column(visible=True), *shown, "", *RecipeView.show(draft.text, command)]

    @property
    def _num_opened(self) -> int:
        """Values that opening a recipe sets: path, said, form, fields, prompt, schema, text, result and view."""
        return len(self.fields) + 9

    # What the buttons do

    def _action(self, what: str) -> Any:
        def act(place: str, asked: str, shape: str, now: str, slots: str, request: gr.Request) -> Iterator[list[Any]]:
            words = words_of(request)
            clean = [gr.update(**_under("")) for _ in range(len(self.fields) + 1)]
            try:
                if not place:
                    raise Refusal("make.choose")
                from_lines("slots", slots or "")  # a line that says nothing is not in the text
                save_draft(self.board, Draft(place, now, asked, shape or ""))
                recipe, rows = read_recipe(self.board, place)
                if what == "check":
                    yield [tag("p", words("make.fine", n=rows), class_="good", role="status"), [], *clean]
                elif what == "estimate":
                    a_row = pace(self.board, place, now)
                    yield [show_estimate(words, estimate(recipe), recipe.teacher, a_row, rows), [], *clean]
                else:
                    extra = ["--preview", str(PREVIEWED)] if what == "preview" else []
                    start_job(self.board, job_name(place), ["data", "generate", place, *extra])
                    yield ["", [], *clean]
            except RecipeError as error:
                found = problems_of(error, now)
                at = {wrong.key: told(words, wrong, now) for wrong in found}
                under = [gr.update(**_under(at.get(key, ""))) for key in (*self.fields, "prompt")]
                yield [show_problems(words, found, now), found, *under]
            except Exception as error:
                yield [show_trouble(words, trouble_of(words, words("make.failed_start"), error)), [], *clean]

        return act

    def _converted(self, place: str, request: gr.Request) -> Any:
        words = words_of(request)
        try:
            start_job(self.board, f"{job_name(place)}-convert", ["data", "convert", place])
        except ForgeError as error:
            return show_trouble(words, trouble_of(words, words("make.failed_start"), error))
        return ""

    def _stopped(self, place: str) -> None:
        if job := find_job(self.board, job_name(place)):
            job.stop()

    def _standing(self, request: gr.Request, place: str, now: str) -> list[Any]:
        return [show_status(self.board, words_of(request), place, now) if place and now else Safe("")]


def _typed(key: str) -> Any:
    """A field's new value stands in the text."""

    def changed(value: Any, now: str, request: gr.Request) -> list[Any]:
        try:
            text = with_field(now, key, value)
        except Refusal as wrong:
            return [gr.skip(), gr.skip(), gr.update(**_under(wrong.said(words_of(request))))]
        except RecipeError:
            return [gr.skip()] * 3  # the check says what is wrong with the text
        return [text, text, gr.update(**_under(""))]

    return changed


def _retyped(now: str) -> list[Any]:
    return [*fields_of(now), now]


def _fixed(found: list[Wrong[str]], now: str, event: gr.EventData) -> list[Any]:
    """The text without one problem; a check finds those that are left."""
    text = found[event.number].fixed if event.number < len(found) else None
    if text is None:
        return [gr.skip()] * (len(FIELDS + LINES) + 3)
    return [text, *(gr.update(value=value, **_under("")) for value in fields_of(text)), text, ""]


def _under(wrong: str) -> dict[str, Any]:
    """What stands under a field: what is wrong with it, else nothing."""
    return {"info": wrong, "elem_classes": ["wrong"] if wrong else []}


def _field(key: str) -> Any:
    label, id = mark(f"make.field_{key}"), f"make-{key.replace('.', '-')}"
    if key == "teacher.model":
        return gr.Dropdown([], label=label, allow_custom_value=True, elem_id=id)
    if key in NUMBERS:
        return gr.Number(None, label=label, precision=0 if key in WHOLE else None, elem_id=id, min_width=130)
    return gr.Textbox(label=label, elem_id=id, max_lines=1)
