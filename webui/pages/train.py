"""Fine-tune: a wizard from model to run (webui/wizard), whose form is a recipe; every key of the schema is in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from llmforge.errors import RecipeError
from llmforge.runs import RunDir
from llmforge.webui import choices, form, launch
from llmforge.webui.board import Board
from llmforge.webui.index import recipe_of
from llmforge.webui.markup import Safe, tag
from llmforge.webui.poll import on_load
from llmforge.webui.wizard.check_step import CheckStep
from llmforge.webui.wizard.data_step import DataStep
from llmforge.webui.wizard.method_step import MethodStep
from llmforge.webui.wizard.model_step import ModelStep
from llmforge.webui.wizard.recipe_form import EDIT, QUIET, RecipeForm, as_list, marked, to_step
from llmforge.webui.wizard.run_step import RunStep, device_boxes
from llmforge.webui.words import mark, words_of

STEPS = ("model", "data", "method", "check", "run")
# The button that was pressed is gone with its step; the next Tab shall lead into the new one.
FOCUS = "() => { setTimeout(() => document.querySelector('#wizard [role=tab][aria-selected=true]')?.focus()); }"


def build(board: Board) -> None:
    """What stands on the page."""
    sheet = RecipeForm(board)
    errors = gr.State({})  # key -> what is wrong with it, by the last check
    with gr.Walkthrough(selected=1, elem_id="wizard") as wizard:
        with _step("model"):
            model = ModelStep(sheet)
        with _step("data"):
            data = DataStep(sheet)
        with _step("method"):
            method = MethodStep(sheet, errors)
        with _step("check"):
            check = CheckStep(sheet, errors)
        with _step("run"):
            run = RunStep(sheet)
    sheet.draw_text()
    sheet.wire()
    model.wire()
    data.wire()
    method.wire()
    check.wire(wizard, method.next, run.devices, run.start)
    run.wire(wizard, check.next, check.checked)
    wizard.change(None, None, None, js=FOCUS)
    for before, back in enumerate((data.back, method.back, check.back, run.back), 1):
        back.click(partial(to_step, before), None, wizard, **QUIET)
    for on, name, target in ((model.next, "model", 2), (data.next, "data", 3)):
        fields = [sheet.fields[key] for key in form.STEPS[name]]
        on.click(_goer(name, target), fields, [wizard, *fields], **QUIET)

    def opened(given: form.Given, request: gr.Request) -> list[Any]:
        """What an opened page shows; whoever was quick keeps what is filled in, where no run is cloned."""
        words, cloned = words_of(request), _cloned(board, request)
        models, names = choices.model_choices(words, board), choices.dataset_names(board)
        shown: dict[str, Any] = dict.fromkeys(form.FIELDS, gr.skip())
        told = [gr.skip()] * len(model.outputs)
        if cloned is not None:
            given = cloned
            shown = dict(zip(form.FIELDS, sheet.values(given), strict=True))
            told = model.tell(given.get("model_name_or_path"), request)
            shown["model_name_or_path"] = gr.Dropdown(models, value=given.get("model_name_or_path"))
        else:
            shown["model_name_or_path"] = gr.Dropdown(models)
            if name := str(request.query_params.get("data", "")):
                given = form.with_value(given, "dataset", [name])
        chosen = as_list(given.get("dataset"))
        shown["dataset"] = gr.Dropdown(names, value=chosen, multiselect=True)
        return [*sheet.show(given), *shown.values(), device_boxes(words), *told, data.tell(chosen, request), 1]

    outputs = [*sheet.views, *sheet.everything, run.devices, *model.outputs, data.told, method.drawn]
    on_load(opened, outputs, sheet.given, **EDIT)


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """A step of the wizard under its heading, which stands in for the row of steps on a phone."""
    number, title = STEPS.index(name) + 1, mark(f"train.step.{name}")
    with gr.Step(title, id=number):
        gr.HTML(tag("h2", f"{number} / {len(STEPS)} ", Safe(str(title))), elem_classes="step-name")
        yield


def _cloned(board: Board, request: gr.Request) -> form.Given | None:
    """The recipe of the run that the page's address names, as it was written, else what differs from the defaults."""
    name = str(request.query_params.get("clone", ""))
    if not name:
        return None
    try:
        run = RunDir(board.path(name, must_exist=True))
    except RecipeError:  # a run that is gone: the form is as new
        return None
    written = run.path / launch.GIVEN
    if written.is_file():
        given, wrong = form.from_yaml(written.read_text(encoding="utf-8", errors="replace"))
        if not wrong:
            return form.ordered({key: value for key, value in given.items() if key not in form.HIDDEN})
    return form.without_defaults(recipe_of(run))


def _goer(step: str, target: int) -> Callable[..., list[Any]]:
    """Goes on to the next step when the fields of this one hold what they may."""
    names = form.STEPS[step]

    def go(request: gr.Request, *values: Any) -> list[Any]:
        words = words_of(request)
        told = {name: form.wrong(words, name, value) for name, value in zip(names, values, strict=True)}
        for name, value in zip(names, values, strict=True):
            if name in form.NEEDED and not value:
                told[name] = words(f"train.needed.{name}")
        return [gr.skip() if any(told.values()) else to_step(target), *(marked(words, *each) for each in told.items())]

    return go
