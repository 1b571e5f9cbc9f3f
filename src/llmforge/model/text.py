"""The text side of a recipe's model: tokenizer and chat template. No torch, so a server reads it without weights."""

from __future__ import annotations

from pathlib import Path

from llmforge.config.schema import Recipe
from llmforge.data.templates.find import get_template
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer, load_tokenizer
from llmforge.model.vocabulary import tokenizer_folder


def load_text(recipe: Recipe, folder: Path) -> tuple[Tokenizer, Template]:
    """Tokenizer and chat template for the base in `folder`, added tokens included. No weights are read."""
    tokenizer = load_tokenizer(tokenizer_folder(recipe.model, folder))
    data = recipe.data
    template = get_template(
        data.template,
        tokenizer,
        default_system=data.default_system,
        enable_thinking=data.enable_thinking,
        tool_format=data.tool_format,
    )
    return tokenizer, template
