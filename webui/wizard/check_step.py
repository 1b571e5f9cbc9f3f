"""The fourth step of the wizard: what forge-cli would say of the recipe, what the run will take, and the fixes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from llmforge.data.example import RowReport
from llmforge.data.inspect import natural_stage
from llmforge.data.read import iter_examples
from llmforge.data.registry import resolve_dataset
from llmforge.errors import RecipeError
from llmforge.model.sources import local_folder
from llmforge.runs import RunDir
from llmforge.webui import choices, form
from llmforge.webui.board import Board
from llmforge.webui.checking import Found, check_text
from llmforge.webui.data_view import Reader, show_examples
from llmforge.webui.devices import devices
from llmforge.webui.estimate import Guess, guess
from llmforge.webui.index import index_of
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.train_view import FIX, show_check, told_of
from llmforge.webui.wizard.recipe_form import EDIT, QUIET, RecipeForm, as_list, marked, to_step
from llmforge.webui.words import Words, mark, words_of

STEPS = {"model": 1, "data": 2, "method": 3}  # of form.STEPS
STEP = 4


class CheckStep:
    """The report; `checked` is the text that was found fine, which the next step may start."""

    def __init__(self, sheet: RecipeForm, errors: gr.State):
        self.sheet, self.errors = sheet, errors
        self.checked = gr.State("")
        self.fixes = gr.State([])  # the recipes that the report's buttons lead to
        self.report = gr.HTML(js_on_load=FIX, elem_id="train-report")
        with gr.Row():
            self.back = gr.Button(mark("train.back"))
            self.again = gr.Button(mark("train.check_again"), elem_id="check-again")
            self.next = gr.Button(mark("train.next"), variant="primary", interactive=False, elem_id="next-run")

    def wire(self, wizard: gr.Walkthrough, ask: gr.Button, chosen: gr.CheckboxGroup, start: gr.Button) -> None:
        """`ask` of the step before checks too; `chosen` are the devices, `start` the button that a good check frees."""
        sheet = self.sheet
        asked = [sheet.given, chosen, sheet.yaml, *sheet.everything]
        told = [*sheet.views, wizard, self.report, self.fixes, self.errors, self.checked, self.next, start,
                *sheet.everything]  # fmt: skip
        fixed = [*sheet.views, *sheet.everything]
        for begin in (
            ask.click(_settle, None, None, **EDIT),
            self.again.click(_settle, None, None, **EDIT),
            self.report.select(self._fix, [self.fixes, sheet.given], fixed, **EDIT),
        ):
            begin.then(self._check, asked, told, **QUIET)

    def _check(
        self, before: form.Given, chosen: list[str], text: str, request: gr.Request, *values: Any
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Check what the fields hold now; a value that no key may have leads back to its field."""
        words, sheet = words_of(request), self.sheet
        same, off = [gr.skip()] * len(form.FIELDS), [gr.Button(interactive=False)] * 2
        written, wrong = form.from_yaml(text)
        if wrong:
            yield [*[gr.skip()] * 5, [], {}, "", *off, *same]
            return
        if written != before:  # typed into the text just now; the fields do not know it yet
            values = tuple(sheet.values(written))
        given = written
        for name, value in zip(form.FIELDS, values, strict=True):
            given = form.with_value(given, name, value)
        told = {name: form.wrong(words, name, value) for name, value in zip(form.FIELDS, values, strict=True)}
        if first := next((name for name in form.FIELDS if told[name]), None):
            step = next(step for step, names in form.STEPS.items() if first in names)
            marks = [marked(words, name, told[name]) for name in form.FIELDS]
            yield [*sheet.show(given), to_step(STEPS[step]), "", [], {}, "", *off, *marks]
            return
        checking = tag("p", words("train.checking"), class_="note", role="status")
        yield [*sheet.show(given), to_step(STEP), checking, [], {}, "", *off, *same]
        unchanged = [gr.skip()] * 4
        try:
            found = check_text(sheet.board, given)
            device = next((device for device in devices() if device.name in chosen), None)
            report = show_check(words, found, self._guess(found, given), device, _first_row(words, sheet, found), given)
        except Exception as error:
            failed = show_trouble(words, trouble_of(words, words("train.check_failed"), error))
            yield [*unchanged, failed, [], {}, "", *off, *same]
            return
        errors = {wrong.key: told_of(words, wrong, given) for wrong in found.problems}
        leads = [gr.Button(interactive=found.runs)] * 2
        marks = [marked(words, name, errors.get(name)) for name in form.FIELDS]
        fixes = [wrong.fixed for wrong in found.problems]
        yield [*unchanged, report, fixes, errors, found.text if found.runs else "", *leads, *marks]

    def _fix(self, fixes: list[form.Given | None], given: form.Given, event: gr.EventData) -> list[Any]:
        fixed = fixes[event.number] if 0 <= event.number < len(fixes) else None
        now = given if fixed is None else fixed
        return [*self.sheet.show(now), *self.sheet.values(now)]

    def _guess(self, found: Found, given: form.Given) -> Guess:
        """What the run will take, by the rows, the model's sizes, and earlier runs of the same model."""
        if found.recipe is None:
            return Guess()
        counts = [choices.count_rows(self.sheet.board, name) for name in as_list(given.get("dataset"))]
        rows = sum(count or 0 for count in counts) if counts and None not in counts else None
        folder = local_folder(found.recipe.model)
        shape = choices.shape_of(folder) if folder else None
        speed = _speed(self.sheet.board, str(given.get("model_name_or_path")))
        return guess(found.recipe, rows, found.fine, shape, speed)


def _settle() -> None:
    """Its turn comes after the edits before it, so what follows reads them."""


def _first_row(words: Words, sheet: RecipeForm, found: Found) -> Safe | None:
    """The first row with what is learned of it marked; None where model or row are not here."""
    if found.recipe is None or not found.runs:
        return None
    try:
        entry = resolve_dataset(found.recipe.data.dataset[0], str(sheet.board.data))
        report = RowReport(entry.name)
        rows = list(islice(iter_examples(entry, report, stage=natural_stage(entry)), 1))
        reader = Reader.of(str(found.recipe.model.model_name_or_path), found.recipe.data.cutoff_len)
        return show_examples(words, rows, RowReport(entry.name), reader)
    except RecipeError:
        return None


def _speed(board: Board, model: str) -> float | None:
    """Tokens per second, the median of the newest run of the same model that logged any."""
    index = index_of(board)
    for row in index.runs():
        if Path(row.model).name == Path(model).name:
            curve = index.curves.of(RunDir(board.root / row.name).log_path)
            if speeds := curve.series.get("tokens_per_second"):
                return sorted(value for _, value in speeds)[len(speeds) // 2]
    return None
