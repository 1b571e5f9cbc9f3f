"""Show recipe and Show command: what a page does, as the file and the words that do the same without the board."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llmforge.webui.markup import Safe, tag
from llmforge.webui.words import mark


class RecipeView:
    """Two folded boxes with copy buttons. Built inside a page; `outputs` are filled by what `show` returns.

    Until then they say that there is nothing to show yet (board.css hides that beside a text).
    """

    def __init__(self, name: str):
        self.recipe = _box("recipe", "yaml", f"{name}-recipe")
        self.command = _box("command", "shell", f"{name}-command")

    @property
    def outputs(self) -> list[Any]:
        return [self.recipe, self.command]

    @staticmethod
    def show(recipe: str, command: str) -> list[Any]:
        """Values for `outputs`."""
        return [gr.update(value=text, visible=bool(text)) for text in (recipe, command)]


def _box(kind: str, language: Any, place: str) -> gr.Code:
    with gr.Accordion(mark(f"common.show_{kind}"), open=False, elem_id=place):
        gr.HTML(tag("p", Safe(str(mark("common.not_yet"))), class_="calm"), elem_classes="not-yet")
        return gr.Code(
            language=language, label=mark(f"common.{kind}"), interactive=False, max_lines=30, buttons=["copy"],
            visible=False,
        )  # fmt: skip
