"""`get_template`: from the word in a recipe to a template value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmforge.data.templates.own import own_template
from llmforge.data.templates.table import GENERAL, QWEN_FAMILY
from llmforge.data.templates.table_zh import CHINESE
from llmforge.data.templates.template import Template
from llmforge.data.templates.tools import get_syntax
from llmforge.data.templates.yaml_file import read_template
from llmforge.data.tokenizer import Tokenizer
from llmforge.registry import Registry

TEMPLATES = Registry("template", {template.name: template for template in (*GENERAL, *QWEN_FAMILY, *CHINESE)})


def get_template(
    name: str,
    tokenizer: Tokenizer,
    *,
    default_system: str | None = None,
    enable_thinking: bool | None = True,
    tool_format: str | None = None,
) -> Template:
    """The template called `name`, "auto" for the tokenizer's own, or a YAML file.

    Nothing is shared: every call returns a value of its own, and no call changes the tokenizer. `default_system` ""
    takes the template's default system text away.

    Raises:
        RecipeError: an unknown name (with the nearest), a wrong file, a chat template that cannot be used, or a
            tokenizer that lacks one of the template's control tokens.
    """
    if name == "auto":
        template: Template = own_template(tokenizer)
    elif name.endswith((".yaml", ".yml")):
        template = read_template(Path(name))
    else:
        template = TEMPLATES.get(name)
    template = replace(template, enable_thinking=enable_thinking)
    if default_system is not None:
        template = replace(template, default_system=default_system or None)
    if tool_format is not None:
        get_syntax(tool_format)  # an unknown name is found here and not at the first row with tools
        template = replace(template, tool_syntax=tool_format)
    template.check_tokenizer(tokenizer)
    return template
