"""Jinja text in a sandbox: what the teacher is asked, and the texts of a training row."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.errors import RecipeError, nearest

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# Texts that servers may read as control tokens: <|im_end|>, <s>, </s>, <reserved_106>, [INST], <bos>.
CONTROL = re.compile(
    r"<(?=\|[^|<>\n]{1,40}\|>|/?s>|[a-z_]*reserved_\d+>|[be]os>|(?:start|end)_of_turn>)|\[(?=/?INST\])"
)
SHOWN = 60


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox: no attributes of Python objects, no undefined names, values free of control tokens."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    env = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True, finalize=_plain
    )
    env.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return env


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> Template:
    return environment().from_string(text)


def _plain(value: Any) -> Any:
    """A blank inside what looks like a control token, so that a fact can never end the teacher's turn."""
    return CONTROL.sub(lambda match: match[0] + " ", value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Prompt:
    """A template, read and checked; `text` is its source."""

    name: str
    text: str

    @classmethod
    def of_file(cls, path: str, known: frozenset[str]) -> Prompt:
        """Read a template file.

        Raises:
            RecipeError: broken syntax with its line, or a name that is no slot.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error})") from None
        return cls._checked(path, text.strip(), known)

    @classmethod
    def of_text(cls, text: str, known: frozenset[str]) -> Prompt:
        """A template written in the recipe itself."""
        return cls._checked(repr(text[:SHOWN]), text, known)

    @classmethod
    def _checked(cls, name: str, text: str, known: frozenset[str]) -> Prompt:
        from jinja2 import TemplateSyntaxError, meta

        try:
            tree = environment().parse(text)
            environment().from_string(text)
        except TemplateSyntaxError as error:
            raise RecipeError(f"{name} line {error.lineno}: {error.message}") from None
        for used in sorted(meta.find_undeclared_variables(tree) - known):
            raise RecipeError(f"{name}: {used!r} is no slot.{nearest(used, known)} Known: {', '.join(sorted(known))}")
        return cls(name, text)

    def render(self, values: Mapping[str, Any]) -> str:
        """The filled-in text.

        Raises:
            RecipeError: a key that a value does not have, or an operation that the sandbox refuses.
        """
        from jinja2 import TemplateError

        try:
            return _compiled(self.text).render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise RecipeError(f"{self.name}: {error}") from None
