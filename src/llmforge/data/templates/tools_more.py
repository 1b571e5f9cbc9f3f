"""The tool syntaxes beside Qwen's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmforge.data.example import ToolCall
from llmforge.data.templates.slot import Part
from llmforge.data.templates.tools import (
    BARE,
    WRAPPED,
    Tools,
    ToolSyntax,
    call_of,
    dumps,
    function,
    given,
    literal,
    mark,
    read_call,
    wrapped,
)
from llmforge.errors import RecipeError

# A call's arguments as JSON; OpenAI's clients send them as JSON text already.
ARGUMENTS = "(call.arguments if call.arguments is string else call.arguments | tojson)"


class DefaultSyntax(ToolSyntax):
    """ "Action: ... Action Input: ...", for models that were never taught a syntax of their own."""

    name = "default"
    source = "github.com/hiyouga/LLaMA-Factory, src/llamafactory/data/tool_utils.py, tool_format default"
    BEFORE = "You have access to the following tools:\n"
    AFTER = (
        "Use the following format if using a tool:\n```\nAction: tool name (one of [{names}])\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n'
    )
    CALL = re.compile(r"Action:[ \t]*(\S+)\s*Action Input:\s*(.+?)(?=\s*\nAction:|\s*$)", re.DOTALL)
    jinja_system = (
        f"{{{{- {literal(BEFORE)} -}}}}{{%- for tool in tools -%}}{{%- set f = {BARE} -%}}"
        "{{- '> Tool Name: ' ~ f['name'] ~ '\\nTool Description: ' ~ (f['description'] or '') ~ '\\nTool Args:\\n' -}}"
        "{%- set parameters = f['parameters'] or {} -%}"
        "{%- for name, value in (parameters['properties'] or {}).items() -%}"
        "{%- set required = ', required' if name in (parameters['required'] or []) else '' -%}"
        "{{- '  - ' ~ name ~ ' (' ~ (value['type'] or '') ~ required ~ '): ' ~ (value['description'] or '') -}}"
        "{%- if value['enum'] -%}{{- ', should be one of [' ~ value['enum'] | join(', ') ~ ']' -}}{%- endif -%}"
        "{%- set items = value.get('items') -%}"
        "{%- if items -%}{{- ', where each item should be ' ~ (items['type'] or '') -}}{%- endif -%}"
        "{{- '\\n' -}}{%- endfor -%}{{- '\\n' -}}{%- endfor -%}"
        f"{{{{- {literal(AFTER.split('{names}')[0])} -}}}}"
        f"{{%- for tool in tools -%}}{{{{- {BARE}['name'] ~ ('' if loop.last else ', ') -}}}}{{%- endfor -%}}"
        f"{{{{- {literal(AFTER.split('{names}')[1])} -}}}}"
    )
    jinja_calls = (
        "{{- lead ~ content -}}{%- for call in calls -%}"
        "{{- ('\\n' if content or not loop.first else '') ~ 'Action: ' ~ call.name ~ '\\nAction Input: ' ~ "
        f"{ARGUMENTS} -}}}}"
        "{%- endfor -%}"
    )

    def system(self, tools: Tools) -> list[Part]:
        functions = [function(tool) for tool in tools]
        listed = "".join(self.describe(f) for f in functions)
        before, after = self.AFTER.split("{names}")
        return [
            mark(self.BEFORE),
            given(listed),
            mark(before),
            given(", ".join(f["name"] for f in functions)),
            mark(after),
        ]

    def describe(self, tool: Mapping[str, Any]) -> str:
        """One tool in lines for people."""
        parameters = tool.get("parameters") or {}
        lines = []
        for name, value in (parameters.get("properties") or {}).items():
            required = ", required" if name in (parameters.get("required") or []) else ""
            allowed = f", should be one of [{', '.join(map(str, value['enum']))}]" if value.get("enum") else ""
            items = f", where each item should be {value['items'].get('type', '')}" if value.get("items") else ""
            lines.append(
                f"  - {name} ({value.get('type', '')}{required}): {value.get('description', '')}{allowed}{items}\n"
            )
        described = f"> Tool Name: {tool['name']}\nTool Description: {tool.get('description', '')}\nTool Args:\n"
        return described + "".join(lines) + "\n"

    def calls(self, calls: Sequence[ToolCall], content: str, lead: str) -> list[Part]:
        lines = [f"Action: {call.name}\nAction Input: {dumps(call.arguments)}" for call in calls]
        return [mark(lead), given("\n".join([content, *lines] if content else lines))]

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        calls = []
        for found in self.CALL.finditer(text):
            try:
                arguments = json.loads(found[2].strip().strip("`"))
            except ValueError:
                return text, ()
            if not isinstance(arguments, dict):
                return text, ()
            calls.append(ToolCall(found[1], arguments))
        return (self.CALL.sub("", text).strip(), tuple(calls)) if calls else (text, ())


class Glm4Syntax(ToolSyntax):
    """The function's name stands where a reply's line break would, its arguments on the next line."""

    name = "glm4"
    source = "huggingface.co/THUDM/glm-4-9b-chat, tokenizer_config.json"
    BEFORE = (
        "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
    )
    EACH = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
    CALL = re.compile(r"\s*([^\s{}]+)\n(\{.*\})\s*", re.DOTALL)
    jinja_system = (
        f"{{{{- {literal(BEFORE)} -}}}}{{%- for tool in tools -%}}{{%- set f = {BARE} -%}}"
        f"{{{{- '\\n\\n## ' ~ f['name'] ~ '\\n\\n' ~ (f | tojson(indent=4)) ~ {literal(EACH)} -}}}}{{%- endfor -%}}"
    )
    jinja_calls = (
        "{%- if content -%}{{- lead ~ content -}}{%- endif -%}{%- for call in calls -%}"
        "{{- ('<|assistant|>' if content or not loop.first else '') ~ call.name ~ '\\n' ~ "
        f"{ARGUMENTS} -}}}}"
        "{%- endfor -%}"
    )

    def system(self, tools: Tools) -> list[Part]:
        listed = []
        for tool in map(function, tools):
            listed += [given(f"\n\n## {tool['name']}\n\n{dumps(tool, indent=4)}"), mark(self.EACH)]
        return [mark(self.BEFORE), *listed]

    def calls(self, calls: Sequence[ToolCall], content: str, lead: str) -> list[Part]:
        parts = [mark(lead), given(content)] if content else []
        for call in calls:
            parts += [mark("<|assistant|>")] if parts else []
            parts += [given(f"{call.name}\n{dumps(call.arguments)}")]
        return parts

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        calls: list[ToolCall] = []
        rest: list[str] = []
        for turn in text.split("<|assistant|>"):
            found = self.CALL.fullmatch(turn)
            call = read_call(f'{{"name": {dumps(found[1])}, "arguments": {found[2]}}}') if found else None
            if call:
                calls.append(call)
            else:
                rest.append(turn)
        return "".join(rest), tuple(calls)


class Llama3Syntax(ToolSyntax):
    """One bare JSON object {"name", "parameters"}, several as a list."""

    name = "llama3"
    source = "llama.com/docs/model-cards-and-prompt-formats/llama3_1, JSON based tool calling"
    place = "before"
    BEFORE = (
        "You have access to the following functions. To call a function, please respond with JSON for a function call. "
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
        "Do not use variables.\n\n"
    )
    jinja_system = (
        f"{{{{- {literal(BEFORE)} -}}}}"
        f"{{%- for tool in tools -%}}{{{{- ({WRAPPED} | tojson(indent=4)) ~ '\\n\\n' -}}}}{{%- endfor -%}}"
    )
    jinja_calls = (
        "{%- if content -%}{{- raise_exception('a reply is text or calls, and this one has both') -}}{%- endif -%}"
        "{{- '[' if calls | length > 1 else '' -}}{%- for call in calls -%}"
        "{{- ('' if loop.first else ', ') ~ '{\"name\": ' ~ (call.name | tojson) ~ ', \"parameters\": ' ~ "
        f"{ARGUMENTS} ~ '}}' -}}}}"
        "{%- endfor -%}{{- ']' if calls | length > 1 else '' -}}"
    )

    def system(self, tools: Tools) -> list[Part]:
        return [mark(self.BEFORE), *(given(dumps(wrapped(tool), indent=4) + "\n\n") for tool in tools)]

    def calls(self, calls: Sequence[ToolCall], content: str, lead: str) -> list[Part]:
        if content:
            raise RecipeError("tool_format 'llama3' writes a reply as text or as calls, and this one has both")
        values = [{"name": call.name, "parameters": call.arguments} for call in calls]
        return [given(dumps(values[0] if len(values) == 1 else values))]

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        try:
            value = json.loads(text.strip().removeprefix("<|python_tag|>"))
        except ValueError:
            return text, ()
        calls = [call_of(item, "parameters") for item in (value if isinstance(value, list) else [value])]
        found = tuple(call for call in calls if call)
        return ("", found) if found and len(found) == len(calls) else (text, ())


class MistralSyntax(ToolSyntax):
    """A list of calls behind [TOOL_CALLS]; the tools stand before the last user turn."""

    name = "mistral"
    source = "huggingface.co/mistralai/Mistral-7B-Instruct-v0.3, tokenizer_config.json"
    place = "last_user"
    jinja_system = (
        "{{- '[AVAILABLE_TOOLS] [' -}}{%- for tool in tools -%}"
        f"{{{{- ('' if loop.first else ', ') ~ ({WRAPPED} | tojson) -}}}}"
        "{%- endfor -%}{{- '][/AVAILABLE_TOOLS]' -}}"
    )
    jinja_calls = (
        "{%- if content -%}{{- raise_exception('a reply is text or calls, and this one has both') -}}{%- endif -%}"
        "{{- '[TOOL_CALLS] [' -}}{%- for call in calls -%}"
        "{{- ('' if loop.first else ', ') ~ '{\"name\": ' ~ (call.name | tojson) ~ ', \"arguments\": ' ~ "
        f"{ARGUMENTS} ~ ((', \"id\": ' ~ (call.id | tojson)) if call.id else '') ~ '}}' -}}}}"
        "{%- endfor -%}{{- ']' -}}"
    )

    def system(self, tools: Tools) -> list[Part]:
        listed = dumps([wrapped(tool) for tool in tools])
        return [mark("[AVAILABLE_TOOLS] "), given(listed), mark("[/AVAILABLE_TOOLS]")]

    def calls(self, calls: Sequence[ToolCall], content: str, lead: str) -> list[Part]:
        if content:
            raise RecipeError("tool_format 'mistral' writes a reply as text or as calls, and this one has both")
        values = [
            {"name": call.name, "arguments": call.arguments, **({"id": call.id} if call.id else {})} for call in calls
        ]
        return [mark("[TOOL_CALLS] "), given(dumps(values))]

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        try:
            values = json.loads(text.strip().removeprefix("[TOOL_CALLS]"))
        except ValueError:
            return text, ()
        calls = [call_of(value) for value in values] if isinstance(values, list) else []
        found = tuple(call for call in calls if call)
        return ("", found) if found and len(found) == len(calls) else (text, ())


DEFAULT, GLM4, LLAMA3, MISTRAL = DefaultSyntax(), Glm4Syntax(), Llama3Syntax(), MistralSyntax()
