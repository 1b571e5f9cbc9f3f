"""Writes a conversation in a template: which slot comes when, and what of it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmforge.data.example import Message
from llmforge.data.templates.slot import Part, fill
from llmforge.data.templates.thinking import Thinking, split_reasoning
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError

if TYPE_CHECKING:
    from llmforge.data.templates.template import LabelPolicy, Template


class Writer:
    """Writes one conversation in one template."""

    def __init__(self, template: Template, tokenizer: Tokenizer, policy: LabelPolicy):
        self.template = template
        self.values = slot_values(template, tokenizer)
        self.policy = policy
        self.rounds = 0

    def write(self, messages: list[Message], tools: list[Mapping[str, Any]], generate: bool) -> list[Part]:
        template = self.template
        self.check(messages)
        system, turns = _split_system(messages, template.default_system)
        users = [i for i, turn in enumerate(turns) if turn.role == "user"]
        replies = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        opening = self.opening(system, tools)
        parts = self.slot(template.prefix)
        carrier = -1
        if opening is not None and template.system_in == "turn":
            learn = system is not None and self.learns_prompt(system)
            parts += self.slot(template.system_prefix, [part._replace(learn=learn) for part in opening], learn)
        elif opening is not None and users:
            carrier = users[0] if template.system_in == "first" else users[-1]
        elif opening is not None:
            raise RecipeError(f"template {template.name!r} writes the system text into a user turn, and there is none")
        i = 0
        while i < len(turns):
            turn = turns[i]
            if i and turns[i - 1].role == "assistant":
                parts += self.slot(template.separator)
            if turn.role == "assistant":
                prefix = generate and i == len(turns) - 1
                parts += self.reply_opening(self.policy.train_on_prompt)
                after_query = not users or i > users[-1]
                learned = not self.policy.mask_history or i == replies[-1]
                parts += (
                    self.unfinished(turn) if prefix else self.reply(turn, after_query, i == len(turns) - 1, learned)
                )
            elif turn.role == "tool":
                last = i
                while last + 1 < len(turns) and turns[last + 1].role == "tool":
                    last += 1
                parts += self.results(turns[i : last + 1])
                i = last
            elif turn.role == "system":
                parts += self.slot(template.system_prefix, [self.content(turn)], self.learns_prompt(turn))
            else:
                if (
                    i == (users[-1] if users else -1)
                    and tools
                    and template.syntax
                    and template.syntax.place == "last_user"
                ):
                    parts += template.syntax.system(tools)
                parts += self.user(turn, self.slot(template.system_prefix, opening or []) if i == carrier else [])
            i += 1
        if generate and (not turns or turns[-1].role != "assistant"):
            parts += self.reply_opening(False) + self.asking()
        return parts

    def check(self, messages: list[Message]) -> None:
        """Refuse what this template has no words for."""
        name = self.template.name
        if not messages:
            raise RecipeError(f"template {name!r}: a conversation without messages cannot be written")
        if self.template.system_in != "turn" and any(m.role == "system" for m in messages[1:]):
            raise RecipeError(f"template {name!r} has no place for a system message after the first message")
        if self.template.tool_syntax is None and any(m.tool_calls or m.role == "tool" for m in messages):
            raise RecipeError(f"template {name!r} has no tool calls; set tool_format to choose a syntax for it")

    def slot(self, slot: str, content: Iterable[Part] = (), learn: bool = False) -> list[Part]:
        return fill(slot, {**self.values, "round": str(self.rounds)}, content, learn)

    def content(self, message: Message, learn: bool | None = None) -> Part:
        text = message.content.strip() if self.template.trim else message.content
        return Part(text, False, self.learns_prompt(message) if learn is None else learn)

    def learns_prompt(self, message: Message) -> bool:
        return self.policy.train_on_prompt if message.train is None else message.train

    def opening(self, system: Message | None, tools: list[Mapping[str, Any]]) -> list[Part] | None:
        """System text and tool list, joined as the tool syntax says; None for neither."""
        parts = None if system is None else [self.content(system)._replace(learn=False)]
        if not tools:
            return parts
        syntax = self.template.syntax
        if syntax is None:
            raise RecipeError(
                f"template {self.template.name!r} has no tools; set tool_format to choose a syntax for it"
            )
        if syntax.place == "last_user":
            return parts
        listed = syntax.system(tools)
        if parts is None:
            return listed
        joint = [Part(syntax.joint, True)] if syntax.joint else []
        return listed + joint + parts if syntax.place == "before" else parts + joint + listed

    def user(self, turn: Message, opening: list[Part]) -> list[Part]:
        self.rounds += 1
        learn = self.learns_prompt(turn)
        return self.slot(self.template.prompt, [*opening, self.content(turn)], learn)

    def results(self, turns: list[Message]) -> list[Part]:
        """Tool results that came together."""
        roles = self.template.roles
        learn = self.learns_prompt(turns[0])
        if "tool_result" in roles:
            each = [part for turn in turns for part in self.slot(roles["tool_result"], [self.content(turn)], learn)]
            return self.slot(roles["tool"], each, learn)
        if "tool" in roles:
            return [part for turn in turns for part in self.slot(roles["tool"], [self.content(turn)], learn)]
        return [part for turn in turns for part in self.user(turn, [])]

    def reply_opening(self, learn: bool) -> list[Part]:
        return self.slot(self.template.roles.get("assistant", ""), learn=learn)

    def asking(self) -> list[Part]:
        """What a prompt for generation holds after the reply's opening."""
        thinking = self.template.thinking
        if thinking is None or self.template.enable_thinking is None:
            return []
        if self.template.enable_thinking is False:
            return [Part(thinking.empty, True)]
        return [Part(thinking.opens, True)] if thinking.asks else []

    def reply(self, turn: Message, after_query: bool, last: bool, learned: bool) -> list[Part]:
        """A finished reply: think block, text, calls, end token."""
        template = self.template
        think, dropped, turn = self.think_block(turn, after_query, last)
        learn = (learned and not dropped) if turn.train is None else turn.train
        parts = [part._replace(learn=learn and part.learn) for part in think]
        if turn.tool_calls and template.syntax:
            written = template.syntax.calls(turn.tool_calls, turn.content, template.lead)
        else:
            written = [Part(template.lead, True), self.content(turn, learn)]
        parts += [part._replace(learn=learn) for part in written if part.text]
        parts += self.slot(template.suffix, learn=learn)
        return [*parts, Part("", True, learn, ends=True)] if template.eos_follows else parts

    def think_block(self, turn: Message, after_query: bool, last: bool) -> tuple[list[Part], bool, Message]:
        """The block before a reply, whether reasoning was left out, and the reply without it."""
        thinking = self.template.thinking
        if thinking is None:
            if turn.reasoning is None:
                return [], False, turn
            block = Thinking()
            return (
                [Part(block.opens, True, True), Part(turn.reasoning, False, True), Part(block.closes, True, True)],
                False,
                turn,
            )
        turn = split_reasoning(turn)
        enabled = self.template.enable_thinking
        if not after_query:
            return [], turn.reasoning is not None and enabled is not False, turn
        if enabled is False:
            return ([Part(thinking.empty, True, False)] if last else []), False, turn
        if turn.reasoning is None and not (enabled and last and (thinking.always or thinking.asks)):
            return [], False, turn
        opens = Part(thinking.opens, True, not (thinking.asks and enabled))
        return [opens, Part(turn.reasoning or "", False, True), Part(thinking.closes, True, True)], False, turn

    def unfinished(self, turn: Message) -> list[Part]:
        """A reply that the model is to continue."""
        empty = self.template.thinking is not None and self.template.enable_thinking is False
        think = [Part(self.template.thinking.empty, True)] if empty and self.template.thinking else []
        return [*think, Part(self.template.lead, True), Part(turn.content, False)]


def _split_system(messages: list[Message], default: str | None) -> tuple[Message | None, list[Message]]:
    """The leading system message (or the default one) and the turns after it."""
    if messages[0].role == "system":
        return messages[0], messages[1:]
    return (None if default is None else Message("system", default)), messages


def slot_values(template: Template, tokenizer: Tokenizer) -> dict[str, str]:
    """What {bos} and {eos} stand for; the control tokens that the template needs are looked up first.

    Raises:
        RecipeError: the tokenizer lacks one of them.
    """
    for mark in template.marks:
        try:
            tokenizer.control(mark)
        except RecipeError as error:
            raise RecipeError(f"template {template.name!r} does not fit this model: {error}") from None
    slots = (template.prefix, template.prompt, template.suffix, template.separator, *template.roles.values())
    if tokenizer.eos_token is None and (template.eos_follows or any("{eos}" in slot for slot in slots)):
        raise RecipeError(
            f"template {template.name!r} needs an eos token; the tokenizer of {tokenizer.folder} names none"
        )
    return {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token or ""}
