"""Show recipe and Show command: what a page does, as the file and the words that do the same without the board."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llmforge.webui.words import mark


class RecipeView:
    """Two folded boxes with copy buttons. Built inside a page; `outputs` are filled by what `show` returns."""

    def __init__(self, name: str):
        with gr.Accordion(mark("common.show_recipe"), open=False, elem_id=f"{name}-recipe"):
            self.recipe = gr.Code(
                language="yaml", label=mark("common.recipe"), interactive=False, max_lines=30, buttons=["copy"]
            )
        with gr.Accordion(mark("common.show_command"), open=False, elem_id=f"{name}-command"):
            self.command = gr.Code(language="shell", label=mark("common.command"), interactive=False, buttons=["copy"])

    @property
    def outputs(self) -> list[Any]:
        return [self.recipe, self.command]

    @staticmethod
    def show(recipe: str, command: str) -> list[str]:
        """Values for `outputs`."""
        return [recipe, command]
