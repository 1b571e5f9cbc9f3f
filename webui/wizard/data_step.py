"""The second step of the wizard: which data sets are learned from, and how much of them."""

from __future__ import annotations

import gradio as gr

from llmforge.webui import choices
from llmforge.webui.markup import Safe
from llmforge.webui.train_view import show_facts
from llmforge.webui.wizard.recipe_form import QUIET, RecipeForm
from llmforge.webui.words import mark, words_of


class DataStep:
    """Data sets, the share held out, and limits; the rows are counted below."""

    def __init__(self, sheet: RecipeForm):
        self.sheet = sheet
        sheet.fields["dataset"] = self.names = gr.Dropdown(
            [], value=[], multiselect=True, allow_custom_value=True, label=mark("train.field.dataset"),
            info=mark("train.info.dataset"), elem_id="field-dataset",
        )  # fmt: skip
        self.told = gr.HTML(elem_id="train-data-told")
        with gr.Row():
            for key in ("val_size", "cutoff_len", "max_samples"):
                sheet.text_field(key)
        with gr.Row():
            self.back = gr.Button(mark("train.back"))
            self.next = gr.Button(mark("train.next"), variant="primary", elem_id="next-method")

    def wire(self) -> None:
        """The rows are counted when the choice changes."""
        self.names.change(self.tell, [self.names], self.told, **QUIET)

    def tell(self, names: list[str], request: gr.Request) -> Safe:
        """How many rows the chosen data sets have."""
        counts = {name: choices.count_rows(self.sheet.board, name) for name in names}
        return show_facts(words_of(request), names, counts)
