"""What kind of recipe stands behind the words of a command, by its top-level keys alone."""

from __future__ import annotations

from collections.abc import Sequence

from llmforge.config.keys import flag_keys
from llmforge.config.sources import read_sources
from llmforge.errors import RecipeError

KINDS = ("chain", "sweep")  # keys that make several runs of a recipe


def recipe_kind(words: Sequence[str]) -> str:
    """ "chain", "sweep", "dataset", or "run", which is all else; words that cannot be read are the loader's to name."""
    try:
        sources = read_sources(words, flag_keys())
    except RecipeError:
        return "run"
    given = {item.key.partition(".")[0]: item.value for layer in sources.layers for item in layer.given}
    if given.get("kind") == "dataset":
        return "dataset"
    return next((kind for kind in KINDS if kind in given), "run")
