"""A template written by a user, as a YAML file named in a recipe.

    prefix: "{bos}"                        # the six fields of a template ...
    prompt: "<user>{content}"
    separator: "\\n"
    suffix: "{eos}"
    default_system: You are a helpful assistant.
    system_prefix: "<system>{content}"
    roles: {assistant: "<model>", tool: "<result>{content}"}      # ... the other turns, and what ends a reply
    stop_words: ["<user>"]

The other fields of `Template` (lead, marks, system_in, eos_follows, trim, tool_syntax, thinking) may be set as well.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from llmforge.data.templates.template import Template
from llmforge.data.templates.thinking import Thinking
from llmforge.data.templates.tools import get_syntax
from llmforge.errors import RecipeError, nearest

TEXTS = (
    "name",
    "source",
    "prefix",
    "prompt",
    "separator",
    "suffix",
    "default_system",
    "system_prefix",
    "lead",
    "tool_syntax",
)
LISTS = ("stop_words", "marks")
SWITCHES = ("eos_follows", "trim")
ROLES = ("assistant", "tool", "tool_result")
OPTIONAL = ("default_system", "tool_syntax")  # may be null
SYSTEM_IN = ("turn", "first", "last")


def read_template(path: Path) -> Template:
    """The template in a YAML file.

    Raises:
        RecipeError: no such file, no YAML, an unknown field (with the nearest) or a value of the wrong kind.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"template: no file {str(path)!r}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"template: {path} is not YAML: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"template: {path} holds {type(value).__name__}, expected a mapping with at least `prompt`")
    known = [*TEXTS, *LISTS, *SWITCHES, "roles", "system_in", "thinking"]
    problems = [f"{key}: no such field.{nearest(key, known)}" for key in value if key not in known]
    problems += [f"{key}: {message}" for key, given in value.items() if (message := _problem(key, given))]
    if "{content}" not in str(value.get("prompt", "")):
        problems.append("prompt: is missing, or has no {content} where the user's text goes")
    if problems:
        raise RecipeError(f"template: {path} cannot be used:\n  " + "\n  ".join(problems))
    value = {key: tuple(given) if key in LISTS else given for key, given in value.items()}
    if value.get("tool_syntax") is not None:
        get_syntax(value["tool_syntax"])
    if "thinking" in value:
        value["thinking"] = Thinking(**value["thinking"])
    return Template(**{"name": path.stem, "source": str(path), **value})


def _problem(key: str, given: Any) -> str:
    """What is wrong with a field's value, "" for nothing."""
    if key in TEXTS and not isinstance(given, str) and not (given is None and key in OPTIONAL):
        return f"got {given!r}, expected text (in quotes, if YAML reads it as something else)"
    if key in LISTS and not (isinstance(given, list) and all(isinstance(item, str) for item in given)):
        return f"got {given!r}, expected a list of texts"
    if key in SWITCHES and not isinstance(given, bool):
        return f"got {given!r}, expected true or false"
    if key == "system_in" and given not in SYSTEM_IN:
        return f"got {given!r}, expected one of {', '.join(SYSTEM_IN)}.{nearest(given, SYSTEM_IN)}"
    if key == "roles":
        return _problem_of_mapping(given, dict.fromkeys(ROLES, str))
    if key == "thinking":
        return _problem_of_mapping(given, {f.name: bool if f.type == "bool" else str for f in fields(Thinking)})
    return ""


def _problem_of_mapping(given: Any, kinds: dict[str, type]) -> str:
    if not isinstance(given, dict):
        return f"got {given!r}, expected a mapping with {', '.join(kinds)}"
    for name, value in given.items():
        if name not in kinds:
            return f"{name!r} is not known.{nearest(name, kinds)} Known: {', '.join(kinds)}"
        if not isinstance(value, kinds[name]):
            return f"{name}: got {value!r}, expected {kinds[name].__name__}"
    return ""
