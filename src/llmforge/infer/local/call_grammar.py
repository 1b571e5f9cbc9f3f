"""Grammars of forced tool calls: what a template's tool syntax writes around a call, and JSON Schema inside.

The syntax itself is asked to write one call and two calls with a marker as arguments; what it puts around the markers
is the grammar's fixed text. So a syntax that is added needs nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmforge.data.example import ToolCall
from llmforge.data.templates.tools import dumps, function
from llmforge.errors import RecipeError
from llmforge.infer.protocol import RequestError

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer

MARKER = {"\u2603 arguments": 0}
GAP = dumps(MARKER)


def write_call_grammar(
    tokenizer: Tokenizer,
    template: Template | None,
    tools: Sequence[Mapping[str, Any]],
    name: str | None,
    parallel: bool,
    spacing: Mapping[str, Any],
) -> str:
    """llguidance's lark grammar of replies that call at least one of `tools`, or the one called `name`.

    Args:
        parallel: whether there may be more than one call.
        spacing: llguidance's options for white space in JSON.

    Raises:
        RequestError: there is no such tool, or replies of this template cannot begin with a call.
    """
    if template is None or template.syntax is None:
        raise RequestError("tool_choice: this model's template has no tool calls", param="tool_choice")
    if template.thinking is not None and template.thinking.asks and template.enable_thinking:
        raise RequestError(
            "tool_choice: replies begin in a think block here, so a call cannot be forced; say 'auto'",
            param="tool_choice",
        )
    functions = {str(function(tool).get("name")): function(tool) for tool in tools}
    chosen = {name: functions[name]} if name in functions and name is not None else functions
    if not chosen or (name is not None and name not in functions):
        known = ", ".join(functions) or "none"
        raise RequestError(f"tool_choice: there is no tool {name!r}; known: {known}", param="tool_choice")

    syntax, lead, marks = template.syntax, template.lead, template.marks

    def text_of(*names: str) -> list[str]:
        """What the syntax writes around the arguments of these calls."""
        calls = [ToolCall(each, dict(MARKER)) for each in names]
        return "".join(part.text for part in syntax.calls(calls, "", lead)).split(GAP)

    def fixed(text: str) -> str:
        """Text as lark terminals; the template's control tokens by their ids."""
        pieces = tokenizer.split_marks(text, marks)
        return " ".join(f"<[{piece}]>" if isinstance(piece, int) else quoted(piece) for piece in pieces)

    try:
        first = next(iter(chosen))
        one = {each: text_of(each) for each in chosen}
        two = {each: text_of(each, first) for each in chosen}
        later = {each: text_of(first, each)[1] for each in chosen}
    except RecipeError as error:
        raise RequestError(f"tool_choice: {error}", param="tool_choice") from None
    rules = [f"arguments_{i}: %json {schema_of(chosen[each], spacing)}" for i, each in enumerate(chosen)]
    rules += [f"alone_{i}: {fixed(one[each][0])} arguments_{i} {fixed(one[each][1])}" for i, each in enumerate(chosen)]
    starts = [f"alone_{i}" for i in range(len(chosen))]
    if parallel:
        rules += [f"first_{i}: {fixed(two[each][0])} arguments_{i}" for i, each in enumerate(chosen)]
        rules += [f"later_{i}: {fixed(later[each])} arguments_{i}" for i, each in enumerate(chosen)]
        firsts = " | ".join(f"first_{i}" for i in range(len(chosen)))
        laters = " | ".join(f"later_{i}" for i in range(len(chosen)))
        starts.append(f"({firsts}) ({laters})+ {fixed(two[first][2])}")
    return "\n".join([f"start: {' | '.join(starts)}", *rules])


def schema_of(tool: Mapping[str, Any], spacing: Mapping[str, Any]) -> str:
    """The JSON Schema of a function's arguments, always an object."""
    parameters = tool.get("parameters") or {}
    return json.dumps({"type": "object", **parameters, "x-guidance": dict(spacing)}, ensure_ascii=False)


def quoted(text: str) -> str:
    """A lark string."""
    return json.dumps(text, ensure_ascii=False)
