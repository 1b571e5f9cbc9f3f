"""Tool syntaxes: how a model is told its tools, how it writes a call, and how a call is read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from llmforge.data.example import ToolCall
from llmforge.data.templates.slot import Part
from llmforge.errors import RecipeError
from llmforge.registry import Registry

Tools = Sequence[Mapping[str, Any]]


def mark(text: str) -> Part:
    return Part(text, True)


def given(text: str) -> Part:
    return Part(text, False)


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON as `tojson` of transformers' chat templates writes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def literal(text: str) -> str:
    """A jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


# A tool in OpenAI's wrapping, and its bare schema.
WRAPPED = "(tool if 'function' in tool else {'type': 'function', 'function': tool})"
BARE = "(tool['function'] if 'function' in tool else tool)"


def function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The bare function schema of a tool, with or without OpenAI's wrapping."""
    inner = tool.get("function", tool)
    return inner if isinstance(inner, Mapping) else tool


def wrapped(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tool in OpenAI's wrapping."""
    return tool if "function" in tool else {"type": "function", "function": dict(tool)}


class ToolSyntax:
    """One way to write tools.

    Attributes:
        place: tools stand "after" or "before" the system text, with `joint` between, or before the "last_user" turn.
        jinja_system, jinja_calls: the same two texts as jinja, for exported chat templates. They see `tools`, and
            `content`, `calls` (of dicts with name, arguments, id) and `lead`.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    place: ClassVar[Literal["after", "before", "last_user"]] = "after"
    joint: ClassVar[str] = ""
    jinja_system: ClassVar[str]
    jinja_calls: ClassVar[str]

    def system(self, tools: Tools) -> list[Part]:
        """The text that tells the model its tools."""
        raise RecipeError(f"tool_format {self.name!r} does not list tools")

    def calls(self, calls: Sequence[ToolCall], content: str, lead: str) -> list[Part]:
        """A reply's body: its text and its calls. `lead` opens a reply of text in this template."""
        raise RecipeError(f"tool_format {self.name!r} does not write calls")

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The inverse of `calls`: text and calls of a generated reply; a reply without a whole call is text."""
        raise RecipeError(f"tool_format {self.name!r} does not read calls")


class QwenSyntax(ToolSyntax):
    """One JSON object per call inside <tool_call> tags (Hermes, Qwen2.5, Qwen3)."""

    name = "qwen"
    source = "huggingface.co/Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json"
    joint = "\n\n"
    BEFORE = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    AFTER = (
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>"
    )
    CALL = re.compile(r"\n?<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
    jinja_system = (
        f"{{{{- {literal(BEFORE)} -}}}}"
        f"{{%- for tool in tools -%}}{{{{- '\\n' ~ ({WRAPPED} | tojson) -}}}}{{%- endfor -%}}"
        f"{{{{- {literal(AFTER)} -}}}}"
    )
    jinja_calls = (
        "{{- lead ~ content -}}{%- for call in calls -%}"
        "{{- ('\\n' if content or not loop.first else '') ~ '<tool_call>\\n' -}}"
        '{{- \'{"name": "\' ~ call.name ~ \'", "arguments": \' ~ '
        "(call.arguments if call.arguments is string else call.arguments | tojson) ~ '}\\n</tool_call>' -}}"
        "{%- endfor -%}"
    )

    def system(self, tools: Tools) -> list[Part]:
        lines = [part for tool in tools for part in (mark("\n"), given(dumps(wrapped(tool))))]
        return [mark(self.BEFORE), *lines, mark(self.AFTER)]

    def calls(self, calls: Sequence[ToolCall], content: str, lead: str) -> list[Part]:
        parts = [mark(lead), given(content)]
        for i, call in enumerate(calls):
            parts += [
                mark("\n<tool_call>\n" if i or content else "<tool_call>\n"),
                given(f'{{"name": "{call.name}", "arguments": {dumps(call.arguments)}}}'),
                mark("\n</tool_call>"),
            ]
        return parts

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        calls = tuple(call for found in self.CALL.finditer(text) if (call := read_call(found[1])))
        return (self.CALL.sub("", text), calls) if calls else (text, ())


def read_call(text: str, key: str = "arguments") -> ToolCall | None:
    """A call out of {"name": ..., "arguments": {...}}, None when it is not one."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return call_of(value, key)


def call_of(value: Any, key: str = "arguments") -> ToolCall | None:
    """A call out of a parsed object; arguments that are themselves JSON text are read once more."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get(key)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    identity = value.get("id")
    return ToolCall(value["name"], arguments, identity) if isinstance(arguments, dict) else None


SYNTAXES = Registry("tool_format", {
    "qwen": QwenSyntax(),
    "hermes": QwenSyntax(),
    "default": "llmforge.data.templates.tools_more:DEFAULT",
    "glm4": "llmforge.data.templates.tools_more:GLM4",
    "llama3": "llmforge.data.templates.tools_more:LLAMA3",
    "mistral": "llmforge.data.templates.tools_more:MISTRAL",
})  # fmt: skip


def get_syntax(name: str) -> ToolSyntax:
    """The syntax called `name`; an unknown name is an error with the nearest one."""
    syntax: ToolSyntax = SYNTAXES.get(name)
    return syntax
