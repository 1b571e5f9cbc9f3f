"""A template of slots as a jinja chat template, to lie beside an exported model.

It renders the same ids as `Template.encode`, with two limits that text has and ids do not: a control token that a user
types counts as one, and a reply that begins with white space may be cut into tokens otherwise after a plain-text
opening.
"""

from __future__ import annotations

from llmforge.data.templates.slot import GAP
from llmforge.data.templates.template import Template
from llmforge.data.templates.thinking import Thinking
from llmforge.data.templates.tools import literal
from llmforge.data.templates.writer import slot_values
from llmforge.data.tokenizer import Tokenizer


def write_jinja(template: Template, tokenizer: Tokenizer) -> str:
    """The chat template of `template`, with this tokenizer's bos and eos written out."""
    writer = _JinjaWriter(template, slot_values(template, tokenizer))
    return "\n".join(line for line in writer.lines() if line) + "\n"


def when(condition: str, body: str) -> str:
    """The body under a condition, "" for an empty body."""
    return f"{{%- if {condition} -%}}{body}{{%- endif -%}}" if body else ""


def refuse(reason: str) -> str:
    return f"{{{{- raise_exception({literal(reason)}) -}}}}"


class _JinjaWriter:
    """Writes statements that print nothing but what their `{{- ... -}}` say."""

    def __init__(self, template: Template, values: dict[str, str]):
        self.template, self.values = template, values
        self.trim = " | trim" if template.trim else ""

    def expression(self, slot: str, content: str = "content", learned: bool = False) -> str:
        """A slot as a jinja expression."""
        pieces = GAP.split(slot)
        written = []
        for i, piece in enumerate(pieces):
            if i % 2 == 0:
                written += [literal(piece)] if piece else []
            elif piece == "content":
                written.append(content)
            elif piece == "round":
                written.append("ns.round")
            else:
                written += [literal(self.values[piece])] if self.values[piece] else []
        if "content" not in pieces[1::2] and content:
            written.append(content)
        return " ~ ".join(written) or "''"

    def show(self, slot: str, content: str = "") -> str:
        """Print a slot; "" for one that prints nothing."""
        expression = self.expression(slot, content)
        return "" if expression == "''" else f"{{{{- {expression} -}}}}"

    def lines(self) -> list[str]:
        template = self.template
        opener = self.show(template.roles.get("assistant", ""))
        after_reply = "turns[loop.index0 - 1]['role'] == 'assistant'"
        ends_in_reply = "turns and turns[-1]['role'] == 'assistant'"
        in_turn = template.system_in == "turn"
        return [
            *self.opening(),
            self.show(template.prefix),
            when("opening is not none", self.show(template.system_prefix, "opening")) if in_turn else "",
            "{%- for message in turns -%}",
            f"{{%- set content = (message['content'] or ''){self.trim} -%}}",
            when(f"not loop.first and {after_reply}", self.show(template.separator)),
            "{%- if message['role'] == 'user' -%}",
            *self.user(),
            "{%- elif message['role'] == 'assistant' -%}",
            opener,
            *self.reply(),
            "{%- elif message['role'] == 'tool' -%}",
            *self.result(),
            "{%- elif message['role'] == 'system' -%}",
            self.show(template.system_prefix, "content") if in_turn else refuse("the system message must come first"),
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            when(ends_in_reply, self.show(template.separator)),
            opener,
            self.asking(),
            f"{{%- elif {ends_in_reply} -%}}{self.show('{eos}')}" if template.eos_follows else "",
            "{%- endif -%}",
        ]

    def opening(self) -> list[str]:
        """System text, tools, and where the first and last user turns are."""
        template, syntax = self.template, self.template.syntax
        default = "none" if template.default_system is None else literal(template.default_system) + self.trim
        lines = [
            "{%- set ns = namespace(round=0, first=-1, last=-1) -%}",
            "{%- if messages and messages[0]['role'] == 'system' -%}",
            f"{{%- set system = (messages[0]['content'] or ''){self.trim} -%}}{{%- set turns = messages[1:] -%}}",
            "{%- else -%}",
            f"{{%- set system = {default} -%}}{{%- set turns = messages -%}}",
            "{%- endif -%}",
            "{%- for message in turns -%}{%- if message['role'] == 'user' -%}",
            "{%- set ns.last = loop.index0 -%}{%- if ns.first < 0 -%}{%- set ns.first = loop.index0 -%}{%- endif -%}",
            "{%- endif -%}{%- endfor -%}",
            "{%- set opening = system -%}",
        ]
        if syntax is None:
            lines.append(
                "{%- if tools -%}{{- raise_exception('this model was not taught to use tools') -}}{%- endif -%}"
            )
        else:
            joint = literal(syntax.joint)
            both = f"listed ~ {joint} ~ system" if syntax.place == "before" else f"system ~ {joint} ~ listed"
            lines += ["{%- if tools -%}", f"{{%- set listed -%}}{syntax.jinja_system}{{%- endset -%}}"]
            if syntax.place != "last_user":
                lines.append(f"{{%- set opening = listed if system is none else {both} -%}}")
            lines.append("{%- endif -%}")
        if template.thinking:
            lines.append(self.thinking_switch())
        return lines

    def user(self) -> list[str]:
        template = self.template
        lines = ["{%- set ns.round = ns.round + 1 -%}"]
        if template.syntax and template.syntax.place == "last_user":
            lines.append(when("tools and loop.index0 == ns.last", "{{- listed -}}"))
        if template.system_in != "turn":
            carried = f"{self.expression(template.system_prefix, 'opening')} ~ content"
            lines.append(
                f"{{%- if opening is not none and loop.index0 == ns.{template.system_in} -%}}"
                f"{{%- set content = {carried} -%}}{{%- endif -%}}"
            )
        return [*lines, self.show(template.prompt, "content")]

    def reply(self) -> list[str]:
        """A finished reply: think block, calls or text, end token."""
        template = self.template
        text = self.show(template.lead + "{content}", "content")
        if template.syntax:
            call = "(call['function'] if 'function' in call else call)"
            body = [
                "{%- if message['tool_calls'] -%}",
                f"{{%- set lead = {literal(template.lead)} -%}}{{%- set found = namespace(calls=[]) -%}}",
                f"{{%- for call in message['tool_calls'] -%}}{{%- set f = {call} -%}}",
                "{%- set one = {'name': f['name'], 'arguments': f['arguments'], 'id': call['id']} -%}",
                "{%- set found.calls = found.calls + [one] -%}",
                "{%- endfor -%}{%- set calls = found.calls -%}",
                template.syntax.jinja_calls,
                f"{{%- else -%}}{text}{{%- endif -%}}",
            ]
        else:
            body = [text]
        return [*self.think_block(), *body, self.show(template.suffix)]

    def result(self) -> list[str]:
        roles = self.template.roles
        if "tool_result" in roles:
            before, _, after = roles["tool"].partition("{content}")
            return [
                "{%- if loop.first or turns[loop.index0 - 1]['role'] != 'tool' -%}"
                + self.show(before)
                + "{%- endif -%}",
                self.show(roles["tool_result"], "content"),
                "{%- if loop.last or turns[loop.index0 + 1]['role'] != 'tool' -%}" + self.show(after) + "{%- endif -%}",
            ]
        if "tool" in roles:
            return [self.show(roles["tool"], "content")]
        return ["{%- set ns.round = ns.round + 1 -%}", self.show(self.template.prompt, "content")]

    def thinking_switch(self) -> str:
        """`thinking`: true, false or none; a client may say `enable_thinking`, otherwise the recipe's word holds."""
        default = {True: "true", False: "false", None: "none"}[self.template.enable_thinking]
        return f"{{%- set thinking = enable_thinking if enable_thinking is defined else {default} -%}}"

    def think_block(self) -> list[str]:
        thinking = self.template.thinking
        if thinking is None:
            plain = Thinking()
            block = f"{literal(plain.opens)} ~ message['reasoning_content'] ~ {literal(plain.closes)}"
            return [when("message['reasoning_content'] is string", f"{{{{- {block} -}}}}")]
        always = "true" if thinking.always or thinking.asks else "false"
        block = f"{{{{- {literal(thinking.opens)} ~ (reasoning or '') ~ {literal(thinking.closes)} -}}}}"
        return [
            "{%- set reasoning = none -%}",
            "{%- if message['reasoning_content'] is string -%}",
            "{%- set reasoning = message['reasoning_content'].strip('\\n') -%}",
            "{%- set content = content.lstrip('\\n') -%}",
            "{%- elif content.lstrip().startswith('<think>') and '</think>' in content -%}",
            "{%- set reasoning = content.split('</think>')[0].split('<think>', 1)[1].strip() or none -%}",
            "{%- set content = content.split('</think>', 1)[1].lstrip() -%}",
            "{%- endif -%}",
            "{%- if loop.index0 > ns.last -%}",
            f"{{%- if thinking is false -%}}{{%- if loop.last -%}}{{{{- {literal(thinking.empty)} -}}}}{{%- endif -%}}",
            f"{{%- elif reasoning is not none or (thinking and loop.last and {always}) -%}}{block}{{%- endif -%}}",
            "{%- endif -%}",
        ]

    def asking(self) -> str:
        thinking = self.template.thinking
        if thinking is None:
            return ""
        asks = f"{{%- elif thinking -%}}{{{{- {literal(thinking.opens)} -}}}}" if thinking.asks else ""
        return f"{{%- if thinking is false -%}}{{{{- {literal(thinking.empty)} -}}}}{asks}{{%- endif -%}}"
