"""What a command says at once, before the libraries that take seconds to read."""

from __future__ import annotations

import sys

from llmforge.config.schema import Recipe


def say_loading(recipe: Recipe) -> None:
    """The model and the adapters that are about to be loaded, on stderr; nothing where a server has them."""
    if recipe.serve.infer_backend == "local":
        names = [recipe.model.model_name_or_path, *recipe.model.adapter_name_or_path]
        print(f"loading {' with '.join(str(name) for name in names)}", file=sys.stderr, flush=True)
