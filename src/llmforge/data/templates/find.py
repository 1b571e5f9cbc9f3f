"""`get_template`: from the word in a recipe to a template value."""

from __future__ import annotations

from dataclasses import replace

from llmforge.data.templates.template import Template
from llmforge.data.templates.tools import get_syntax
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError
from llmforge.registry import Registry

TEMPLATES = Registry("template", {})


def _fill_table() -> None:
    from llmforge.data.templates.table import TABLE

    for name, template in TABLE.items():
        TEMPLATES.add(name, template)


_fill_table()


def get_template(
    name: str,
    tokenizer: Tokenizer,
    *,
    default_system: str | None = None,
    enable_thinking: bool | None = True,
    tool_format: str | None = None,
) -> Template:
    """The template called `name`, "auto" for the tokenizer's own, or a YAML file.

    Nothing is shared: every call returns a value of its own, and no call changes the tokenizer.

    Raises:
        RecipeError: an unknown name (with the nearest), a wrong file, a chat template that cannot be used, or a tokenizer
            without the template's control tokens.
    """
    if name == "auto":
        from llmforge.data.templates.own import own_template

        template = own_template(tokenizer)
    elif name.endswith((".yaml", ".yml")):
        from llmforge.data.templates.file import read_template

        template = read_template(name)
    else:
        template = TEMPLATES.get(name)
    changes: dict[str, object] = {"enable_thinking": enable_thinking}
    if default_system is not None:
        changes["default_system"] = default_system
    if tool_format is not None:
        get_syntax(tool_format)
        changes["tool_syntax"] = tool_format
    template = replace(template, **changes)
    template.check_tokenizer(tokenizer)
    return template
