"""`forge-cli api R`: serve the OpenAI API."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmforge.config.load import load_recipe
from llmforge.config.said import say_loading
from llmforge.serve.run import serve


def main(words: Sequence[str]) -> int:
    """Serve the recipe's model until it is stopped; 0 after a clean end, by signal too."""
    recipe = load_recipe(words, "api")
    for note in recipe.notes:
        print(note, file=sys.stderr)
    say_loading(recipe)
    serve(recipe)
    return 0
