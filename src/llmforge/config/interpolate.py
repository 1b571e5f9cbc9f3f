"""`${key}` inside a recipe, by OmegaConf; only other keys may be named, so a recipe cannot read the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmforge.config.given import Given, Problem
from llmforge.config.keys import keys
from llmforge.config.translate import nearest_key
from llmforge.config.yaml_text import shown

REFERENCE = re.compile(r"(?<!\\)\$\{\s*([^{}\s]+)\s*\}")
OPENING = re.compile(r"(?<!\\)\$\{")
MAX_CHARACTERS = 100_000  # what all references together may grow to


def interpolate(given: Mapping[str, Given]) -> tuple[dict[str, Given], list[Problem]]:
    """Every given value with its `${...}` filled in; a key that was not given stands for its default."""
    if not any("${" in str(item.value) for item in given.values()):
        return dict(given), []
    problems = [Problem(item.origin, message) for item in given.values() for message in _unfit(item, given)]
    if problems:
        return dict(given), problems
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values: dict[str, Any] = {name: key.default for name, key in keys().items() if not key.rule.secret}
    values |= {name: item.value for name, item in given.items()}
    tree = OmegaConf.create(_nested(values))
    filled = dict(given)
    for name, item in given.items():
        if "${" not in str(item.value):
            continue
        try:
            value = OmegaConf.select(tree, name)
            value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, RecursionError) as error:
            problems.append(Problem(item.origin, f"{name}: {str(error).splitlines()[0]}"))
            continue
        filled[name] = Given(name, value, item.origin, value if isinstance(value, str) else None)
    return filled, problems


def _unfit(item: Given, given: Mapping[str, Given]) -> list[str]:
    """References that are calls, lead nowhere or in a circle, or grow without end."""
    messages = []
    if len(OPENING.findall(str(item.value))) != len(REFERENCE.findall(str(item.value))):
        messages.append(f"{item.key}: {shown(item.value)} opens a reference that is none; the text itself is \\${{")
    for name in REFERENCE.findall(str(item.value)):
        if ":" in name:
            messages.append(f"{item.key}: ${{{name}}} calls a resolver; only other keys may be named, as in ${{seed}}")
        elif name not in given and name not in keys() and name.split(".")[0] not in given:
            messages.append(f"{item.key}: ${{{name}}} names no key{nearest_key(name)}")
    if not messages:
        try:
            if _grown(item.key, given, ()) > MAX_CHARACTERS:
                messages.append(f"{item.key}: its references grow beyond {MAX_CHARACTERS:,} characters")
        except RecursionError:
            messages.append(f"{item.key}: its references lead in a circle")
    return messages


def _grown(name: str, given: Mapping[str, Given], above: tuple[str, ...]) -> int:
    if name in above:
        raise RecursionError
    if name not in given or len(above) > 50:
        return 100
    text = str(given[name].value)
    total = len(text)
    for reference in REFERENCE.findall(text):
        total += _grown(reference, given, (*above, name))
        if total > MAX_CHARACTERS:
            break
    return total


def _nested(values: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for name, value in values.items():
        group, _, field = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[field] = value
    return tree
