"""The recipe on the page: fields, YAML text and command are three views of one mapping, which `given` holds."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import gradio as gr

from llmforge.config.keys import keys
from llmforge.webui import form
from llmforge.webui.board import Board
from llmforge.webui.markup import join, tag
from llmforge.webui.sentences import show_sentence
from llmforge.webui.words import Words, mark, words_of

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Whatever changes `given` reads it before, so a page's changes come one after the other, in the order they were made.
EDIT: dict[str, Any] = {**QUIET, "concurrency_id": "recipe", "concurrency_limit": 1}
TYPED: dict[str, Any] = {**EDIT, "trigger_mode": "always_last"}
CHOSEN = ("model_name_or_path", "template", "stage", "finetuning_type")  # fields that show a value as it is
LISTS = ("dataset",)


class RecipeForm:
    """The fields that the steps draw, by key, and what an edit of one of them does to the other views."""

    def __init__(self, board: Board):
        self.board = board
        self.fields: dict[str, Any] = {}
        self.given = gr.State(form.preset({}, "standard"))

    def text_field(self, key: str) -> None:
        """A line of text for a key, with the standard preset's value."""
        self.fields[key] = gr.Textbox(
            form.text_of(form.PRESETS["standard"].get(key)), label=mark(f"train.field.{key}"),
            info=mark(f"train.info.{key}"), elem_id=f"field-{key}", max_lines=1, min_width=200,
        )  # fmt: skip

    def draw_text(self) -> None:
        """The YAML text, which can be edited too, and the command, folded."""
        with gr.Accordion(mark("common.show_recipe"), open=False, elem_id="train-recipe"):
            self.yaml = gr.Code(
                form.to_yaml(self.given.value), language="yaml", label=mark("train.yaml"), interactive=True,
                max_lines=30, buttons=["copy"],
            )  # fmt: skip
            self.yaml_wrong = gr.HTML(elem_id="train-yaml-wrong")
        with gr.Accordion(mark("common.show_command"), open=False, elem_id="train-command"):
            self.command = gr.Code(
                language="shell", label=mark("common.command"), interactive=False, buttons=["copy"]
            )  # fmt: skip

    @property
    def views(self) -> list[Any]:
        """Outputs for what `show` returns."""
        return [self.given, self.yaml, self.command]

    @property
    def everything(self) -> list[Any]:
        """The fields in the order of form.FIELDS, for what `values` returns."""
        return [self.fields[name] for name in form.FIELDS]

    def wire(self) -> None:
        """Each field changes the text, the text changes the fields."""
        for name in form.FIELDS:
            field = self.fields[name]
            field.input(self.setter(name), [field, self.given], [*self.views, field], **TYPED)
        self.yaml.input(
            self._from_yaml, [self.yaml, self.given], [self.given, self.yaml_wrong, self.command, *self.everything],
            **TYPED,
        )  # fmt: skip

    def show(self, given: form.Given) -> list[Any]:
        """Values of `views`."""
        return [given, form.to_yaml(given), command_of(given)]

    def values(self, given: form.Given) -> list[Any]:
        """Values of `everything`."""
        return [value_of(name, given) for name in form.FIELDS]

    def setter(self, name: str, help: str = "") -> Callable[..., list[Any]]:
        """Takes a key as it was typed: kept also when it is wrong, so that YAML and form stay the same thing."""

        def take(value: Any, given: form.Given, request: gr.Request) -> list[Any]:
            now = form.with_value(given, name, value)
            words = words_of(request)
            return [*self.show(now), marked(words, name, form.wrong(words, name, value), help)]

        return take

    def _from_yaml(self, text: str, before: form.Given, request: gr.Request) -> list[Any]:
        given, wrong = form.from_yaml(text)
        if wrong:
            words = words_of(request)
            told = [tag("p", show_sentence(words, line), class_="bad", role="alert") for line in wrong.splitlines()]
            return [before, join(told), gr.skip(), *[gr.skip()] * len(form.FIELDS)]
        return [given, "", command_of(given), *self.values(given)]


def value_of(name: str, given: form.Given) -> Any:
    """What a key's field shows."""
    value = given.get(name, keys()[name].default)
    if name in LISTS:
        return as_list(value)
    return value if name in CHOSEN else form.text_of(value)


def as_list(value: Any) -> list[str]:
    """Names of data sets, of a list or a text with commas; an inline entry by its file."""
    if not value:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [item if isinstance(item, str) else str(item.get("file_name", item)) for item in value]


def command_of(given: form.Given) -> str:
    """The same as one line, without the board."""
    words = [f"{key}={shlex.quote(form.text_of(value))}" for key, value in given.items()]
    return "forge-cli train \\\n  " + " \\\n  ".join([*words, "output_dir=runs/NAME"])


def marked(words: Words, name: str, wrong: str | None, help: str = "") -> Any:
    """What stands under a field's name: its meaning, or what is wrong with it."""
    if wrong:
        return gr.update(info=wrong, elem_classes=["wrong"])
    return gr.update(info=help or words(f"train.info.{name}"), elem_classes=[])


def to_step(number: int) -> Any:
    """The update that shows a step of the wizard."""
    return gr.Walkthrough(selected=number)
