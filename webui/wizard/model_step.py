"""The first step of the wizard: which model learns, and fetching it where it is not here yet."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llmforge.config.schema import ModelConfig
from llmforge.data.templates.find import TEMPLATES
from llmforge.errors import RecipeError
from llmforge.model.sources import local_folder
from llmforge.webui import choices
from llmforge.webui.amounts import many
from llmforge.webui.fetching import is_fetching, show_failure, show_fetch, start_fetch
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.wizard.recipe_form import QUIET, RecipeForm
from llmforge.webui.words import Words, mark, words_of

LOOK_EVERY_S = 1.5


class ModelStep:
    """Model and template; what is known of the model stands below."""

    def __init__(self, sheet: RecipeForm):
        self.board = sheet.board
        with gr.Row():
            sheet.fields["model_name_or_path"] = self.model = gr.Dropdown(
                [], value=None, label=mark("train.field.model"), info=mark("train.info.model_name_or_path"),
                allow_custom_value=True, elem_id="field-model_name_or_path", scale=3,
            )  # fmt: skip
            names = [(name, name) for name in sorted(TEMPLATES) if name != "auto"]
            sheet.fields["template"] = gr.Dropdown(
                [(mark("train.template_auto"), "auto"), *names], value="auto", label=mark("train.field.template"),
                info=mark("train.info.template"), elem_id="field-template", scale=2,
            )  # fmt: skip
        self.told = gr.HTML(elem_id="train-model-told")
        with gr.Row():
            self.fetch = gr.Button(mark("train.fetch"), visible=False, elem_id="train-fetch")
            self.next = gr.Button(mark("train.next"), variant="primary", elem_id="next-data")
        self.timer = gr.Timer(LOOK_EVERY_S, active=False)

    @property
    def outputs(self) -> list[Any]:
        """For what `tell` returns."""
        return [self.told, self.fetch, self.timer]

    def wire(self) -> None:
        """The model is looked at when it changes; a fetch is watched until it ends."""
        self.model.change(self.tell, self.model, self.outputs, **QUIET)
        self.fetch.click(self._fetch, self.model, self.outputs, **QUIET)
        self.timer.tick(self._fetched, self.model, self.outputs, **QUIET)

    def tell(self, name: str | None, request: gr.Request) -> list[Any]:
        """What is known of a model, whether it can be fetched, and whether that goes on."""
        words = words_of(request)
        if name and is_fetching(self.board, name):
            return [show_fetch(words, self.board, name), gr.Button(visible=False), gr.Timer(active=True)]
        told, must_fetch = self._look(words, name) if name else ("", False)
        return [told, gr.Button(visible=must_fetch), gr.Timer(active=False)]

    def _look(self, words: Words, name: str) -> tuple[Safe | str, bool]:
        """(what is said of a model, whether it is to be fetched)."""
        try:
            folder = local_folder(ModelConfig(model_name_or_path=name))
        except Exception as error:
            return show_trouble(words, trouble_of(words, words("train.model_wrong"), error)), False
        if folder is None:
            return tag("p", words("train.must_fetch"), class_="note"), True
        shape = choices.shape_of(folder)
        if shape is None or not shape.params:
            return "", False
        told = words("train.model_is", parameters=many(words, shape.params), layers=shape.layers)
        return tag("p", told, class_="calm"), False

    def _fetch(self, name: str, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            start_fetch(self.board, name)
        except RecipeError as error:
            return [show_trouble(words, trouble_of(words, words("train.fetch_failed"), error)), gr.skip(), gr.skip()]
        return self.tell(name, request)

    def _fetched(self, name: str, request: gr.Request) -> list[Any]:
        told, button, timer = self.tell(name, request)
        failed = None if is_fetching(self.board, name) else show_failure(words_of(request), self.board, name)
        return [failed or told, button, timer]
