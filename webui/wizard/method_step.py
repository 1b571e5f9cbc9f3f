"""The third step of the wizard: a preset, what it sets, and under Advanced every other key of the schema."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llmforge.config.keys import Key, keys, keys_of
from llmforge.webui import form
from llmforge.webui.markup import tag
from llmforge.webui.wizard.recipe_form import EDIT, TYPED, RecipeForm
from llmforge.webui.words import Words, mark, words_of

MOST_SHOWN = 12  # advanced keys drawn at once; a search finds the others
IN_A_ROW = 3


class MethodStep:
    """How it is learned. `errors` holds what the last check said of a key, for the fields under Advanced.

    Those are drawn anew when `drawn` changes: when the page opens, and when something else than they changed a key.
    """

    def __init__(self, sheet: RecipeForm, errors: gr.State):
        self.sheet, self.errors = sheet, errors
        self.drawn = gr.State(0)
        self.preset = gr.Radio(
            [(mark(f"train.preset.{name}"), name) for name in form.PRESETS], value="standard",
            label=mark("train.preset"), info=mark("train.info.preset"), elem_id="train-preset",
        )  # fmt: skip
        with gr.Row():
            for key in ("stage", "finetuning_type"):
                options = keys()[key].choices or ()
                sheet.fields[key] = gr.Dropdown(
                    [(mark(f"train.{key}.{name}"), name) for name in options], value=form.COMMON[key],
                    label=mark(f"train.field.{key}"), info=mark(f"train.info.{key}"), elem_id=f"field-{key}",
                )  # fmt: skip
        with gr.Row():
            for key in ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "lora_rank"):
                sheet.text_field(key)
        with gr.Accordion(mark("train.advanced"), open=False, elem_id="train-advanced"):
            with gr.Row():
                self.search = gr.Textbox(
                    label=mark("train.search"), placeholder=mark("train.search_hint"), max_lines=1, scale=3,
                    elem_id="advanced-search",
                )  # fmt: skip
                groups = [(mark(f"train.group.{name}"), name) for name in keys_of("train")]
                self.group = gr.Dropdown(
                    [(mark("train.group.all"), ""), *groups], value="train", label=mark("train.group"), scale=1
                )
            self._advanced()
        with gr.Row():
            self.back = gr.Button(mark("train.back"))
            self.next = gr.Button(mark("train.check"), variant="primary", elem_id="next-check")

    def wire(self) -> None:
        """A preset sets the fields."""
        sheet = self.sheet
        changed = [*sheet.views, *sheet.everything, self.drawn]
        self.preset.input(self._preset, [self.preset, sheet.given, self.drawn], changed, **EDIT)

    def _preset(self, name: str, given: form.Given, drawn: int) -> list[Any]:
        now = form.preset(given, name)
        return [*self.sheet.show(now), *self.sheet.values(now), drawn + 1]

    def _advanced(self) -> None:
        """Fields of the schema's other keys, drawn when they are searched for."""

        @gr.render(
            inputs=[self.search, self.group, self.sheet.given, self.errors],
            triggers=[self.search.change, self.group.change, self.drawn.change, self.errors.change],
            show_progress="hidden",
        )
        def draw(
            search: str, group: str, given: form.Given, errors: dict[str, str], request: gr.Request
        ) -> None:  # fmt: skip
            words = words_of(request)
            found = form.advanced(words, search or "", group or "", str(given.get("stage", "sft")))
            shown = found[:MOST_SHOWN]
            if not found:
                gr.HTML(tag("p", words("train.no_key"), class_="calm"))
            for start in range(0, len(shown), IN_A_ROW):
                with gr.Row():
                    for key in shown[start : start + IN_A_ROW]:
                        self._one(words, key, given, errors.get(key.name))
            if len(found) > len(shown):
                gr.HTML(tag("p", words("train.more_keys", n=len(found) - len(shown)), class_="calm"))

    def _one(self, words: Words, key: Key, given: form.Given, wrong: str | None) -> None:
        """One key's field: a switch, a list of choices, or a line of text."""
        value, help = given.get(key.name, key.default), form.help_of(words, key)
        about: dict[str, Any] = {
            "label": key.name, "info": wrong or help, "elem_id": f"advanced-{key.name}", "min_width": 240,
            "elem_classes": ["wrong"] if wrong else [], "interactive": True,
        }  # fmt: skip
        field: Any
        if form.is_switch(key):
            field = gr.Checkbox(bool(value), **about)
        elif key.choices is not None and not isinstance(key.default, list):
            field = gr.Dropdown([str(choice) for choice in key.choices], value=form.text_of(value) or None, **about)
        else:
            field = gr.Textbox(
                form.text_of(value), placeholder=form.expectation(words, key), max_lines=1, **about
            )  # fmt: skip
        sheet = self.sheet
        field.input(sheet.setter(key.name, help), [field, sheet.given], [*sheet.views, field], **TYPED)
