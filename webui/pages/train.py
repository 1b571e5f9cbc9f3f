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
from llmforge.webui.wizard.check_step import CheckStep
from llmforge.webui.wizard.data_step import DataStep
from llmforge.webui.wizard.method_step import MethodStep
from llmforge.webui.wizard.model_step import ModelStep
from llmforge.webui.wizard.recipe_form import QUIET, RecipeForm, as_list, marked, to_step
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

    def opened(request: gr.Request) -> list[Any]:
        """The form when the page opens: fresh, or a run's recipe to change."""
        words, given = words_of(request), _begin(board, request)
        names = as_list(given.get("dataset"))
        name = given.get("model_name_or_path")
        shown = dict(zip(form.FIELDS, sheet.values(given), strict=True))
        shown["model_name_or_path"] = gr.Dropdown(choices.model_choices(words, board), value=name)
        shown["dataset"] = gr.Dropdown(choices.dataset_names(board), value=names, multiselect=True)
        told = [*model.tell(name, request), data.tell(names, request)]
        return [*sheet.show(given), *shown.values(), "", device_boxes(words), *told, 1]

    outputs = [*sheet.views, *sheet.everything, run.name, run.devices, *model.outputs, data.told, method.drawn]
    gr.on(None, opened, None, outputs, **QUIET)


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """A step of the wizard under its heading, which stands in for the row of steps on a phone."""
    number, title = STEPS.index(name) + 1, mark(f"train.step.{name}")
    with gr.Step(title, id=number):
        gr.HTML(tag("h2", f"{number} / {len(STEPS)} ", Safe(str(title))), elem_classes="step-name")
        yield


def _begin(board: Board, request: gr.Request) -> form.Given:
    """The recipe that the page's address asks for: of a run to change, or with a data set chosen."""
    given = form.preset({}, "standard")
    if data := str(request.query_params.get("data", "")):
        given["dataset"] = [data]
    if cloned := str(request.query_params.get("clone", "")):
        with contextlib.suppress(RecipeError):  # a run that is gone: the form is as new
            given = _cloned(RunDir(board.path(cloned, must_exist=True)))
    return form.ordered(given)


def _cloned(run: RunDir) -> form.Given:
    """A run's recipe as it was written, else what differs from the defaults of the resolved one."""
    written = run.path / launch.GIVEN
    if written.is_file():
        given, wrong = form.from_yaml(written.read_text(encoding="utf-8", errors="replace"))
        if not wrong:
            return {key: value for key, value in given.items() if key not in form.HIDDEN}
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
