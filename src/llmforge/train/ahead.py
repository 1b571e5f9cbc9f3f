"""Tokenizer and rows, read in a thread while this process imports torch: neither needs it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from llmforge.config.schema import Recipe
from llmforge.data.build import DataSets, build_data
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.model.sources import resolve_model
from llmforge.model.text import load_text


@dataclass(frozen=True)
class Texts:
    """A recipe's text side; `model_folder` is the base's."""

    model_folder: Path
    tokenizer: Tokenizer
    template: Template
    data: DataSets


def read_texts(recipe: Recipe) -> Texts:
    """Fetch the model where it is not here yet, and build the data sets.

    Raises:
        RecipeError: see `resolve_model`, `load_text`, `build_data`.
    """
    folder = resolve_model(recipe.model)
    tokenizer, template = load_text(recipe, folder)
    return Texts(folder, tokenizer, template, build_data(recipe, tokenizer, template))


class ReadAhead:
    """`read_texts` in a thread of its own; what it raises is raised where the texts are taken."""

    def __init__(self, recipe: Recipe):
        self._texts: Texts | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, args=(recipe,), daemon=True)
        self._thread.start()

    def _read(self, recipe: Recipe) -> None:
        try:
            self._texts = read_texts(recipe)
        except BaseException as error:
            self._error = error

    def take(self) -> Texts:
        """Wait for the texts."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._texts is not None
        return self._texts
