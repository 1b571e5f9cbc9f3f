"""`Template`: how a conversation becomes token ids and labels, for training, chat, API and export alike.

Tokenisation rule: boundaries are control tokens and the start and end of every learned span; the text between two
boundaries is encoded in one call, in which no control token is recognised. So what a user types stays text, and the
number of control tokens in a row depends on its structure alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from llmforge.data.example import IGNORE, Encoded, Message
from llmforge.data.templates.slot import Part, fill
from llmforge.data.templates.thinking import Thinking, split_reasoning
from llmforge.data.templates.tools import ToolSyntax, get_syntax
from llmforge.data.tokenizer import Before, Tokenizer
from llmforge.errors import RecipeError


@dataclass(frozen=True)
class LabelPolicy:
    """Which parts of a row are learned beside or instead of every reply; `Message.train` overrides it for one turn."""

    train_on_prompt: bool = False  # prompts too
    mask_history: bool = False  # only the last reply


@dataclass(frozen=True)
class Template:
    """A chat format as data. Slots may hold {content}, {bos}, {eos} and {round} (turns of the user, from 1).

    Attributes:
        name, source: what recipes call it, and where the format is published.
        prefix: opens every row; {bos} is nothing where the tokenizer has no bos.
        prompt: a user turn. It ends where the reply's opening starts (`roles["assistant"]`), or holds it.
        suffix: ends a reply and is learned with it.
        separator: stands between a finished reply and the next turn; it never ends a row.
        default_system: system text of a conversation that brings none; None for no system turn, "" for an empty one.
        system_prefix: the system turn, or with `system_in` what goes before the user's text.
        roles: slots of the other turns: "assistant" opens a reply, "tool" is a turn of tool results with "tool_result"
            for each of them (without "tool", results come as a user turn).
        stop_words: texts and tokens that end a reply beside `suffix`.
        marks: control tokens of the slots that the tokenizer must have.
        lead: opens a reply too, but is learned (the space after Vicuna's "ASSISTANT:").
        system_in: "turn", or the user turn that carries the system text: "first" or "last".
        eos_follows: a finished reply has no end token of its own; the label under the next mark is eos, and eos closes a
            row that ends in a reply (Baichuan2, ChatGLM).
        trim: white space around each text is dropped, as the model's own template does.
        tool_syntax: how tools, calls and results are written; None: tools are refused.
        thinking: the think block of a reasoning model; `enable_thinking` is the policy for it.
    """

    name: str
    source: str
    prefix: str = ""
    prompt: str = "{content}"
    separator: str = ""
    suffix: str = "{eos}"
    default_system: str | None = None
    system_prefix: str = "{content}"
    roles: Mapping[str, str] = field(default_factory=dict)
    stop_words: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    lead: str = ""
    system_in: str = "turn"
    eos_follows: bool = False
    trim: bool = False
    tool_syntax: str | None = "default"
    thinking: Thinking | None = None
    enable_thinking: bool | None = True

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        policy: LabelPolicy = LabelPolicy(),
    ) -> Encoded:
        """Ids and labels of a conversation.

        With `add_generation_prompt` the row ends where the model goes on: after the reply's opening, or inside the last
        reply when the messages end with one (a prefix that the model continues), and nothing in it is learned.

        Raises:
            RecipeError: the conversation does not fit the template, or the tokenizer lacks a token of it.
        """
        parts = self.parts(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt, policy=policy)
        row = encode_parts(parts, tokenizer, self.marks, self.name)
        return Encoded(row.input_ids, [IGNORE] * len(row.input_ids)) if add_generation_prompt else row

    def text(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The row as people read it; control tokens are written out."""
        parts = self.parts(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt)
        text = "".join(part.text for part in parts)
        return text + (tokenizer.eos_token or "") if parts and parts[-1].ends else text

    def parts(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        policy: LabelPolicy = LabelPolicy(),
    ) -> list[Part]:
        """The conversation as pieces of the template's own and of other people's text."""
        return _Writer(self, tokenizer, policy).write(list(messages), list(tools), add_generation_prompt)

    def stop_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Ids that end a reply: the template's end tokens first, then eos and what generation_config.json names."""
        ids = [] if self.eos_follows else [self._end_id(tokenizer)]
        ids += [tokenizer.controls.get(word) for word in self.stop_words]
        ids += [tokenizer.eos_id, *tokenizer.stop_ids]
        return list(dict.fromkeys(i for i in ids if i is not None))

    def stop_strings(self, tokenizer: Tokenizer) -> list[str]:
        """Stop words, and an end of replies, that are no token of this tokenizer and have to be watched for as text."""
        words = [
            *self.stop_words,
            *([] if "{eos}" in self.suffix or not self.suffix.strip() else [self.suffix.strip()]),
        ]
        return [word for word in words if not any(isinstance(p, int) for p in tokenizer.split_marks(word, self.marks))]

    def parse_reply(self, text: str) -> Message:
        """Content, reasoning and tool calls of a generated reply.

        The text may begin inside the think block, where the prompt has opened it.
        """
        if self.thinking and self.thinking.asks and "</think>" in text and "<think>" not in text:
            text = f"<think>{text}"
        message = split_reasoning(Message("assistant", text)) if "<think>" in text else Message("assistant", text)
        if self.lead.isspace() and message.content.startswith(self.lead):
            message = replace(message, content=message.content[len(self.lead) :])
        if self.syntax:
            content, calls = self.syntax.parse(message.content)
            message = replace(message, content=content, tool_calls=calls)
        return message

    def jinja(self, tokenizer: Tokenizer) -> str:
        """A chat template for transformers, vLLM and others that renders the same ids."""
        from llmforge.data.templates.jinja_writer import write_jinja

        return write_jinja(self, tokenizer)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise a RecipeError when the tokenizer lacks a token of this template."""
        slot_values(self, tokenizer)

    def hash(self) -> str:
        """sha256 of everything that decides ids and labels; the same in every process."""
        value = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()

    @property
    def syntax(self) -> ToolSyntax | None:
        """The tool syntax, None when the template refuses tools."""
        return None if self.tool_syntax is None else get_syntax(self.tool_syntax)

    def _end_id(self, tokenizer: Tokenizer) -> int | None:
        """Id of the control token that ends a reply, None for a template that ends in plain text."""
        end = "".join(part.text for part in fill(self.suffix, slot_values(self, tokenizer)))
        ids = [piece for piece in tokenizer.split_marks(end, self.marks) if isinstance(piece, int)]
        return ids[0] if ids else None


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


def encode_parts(parts: Iterable[Part], tokenizer: Tokenizer, marks: tuple[str, ...], name: str) -> Encoded:
    """Apply the tokenisation rule of this module to the pieces of a row.

    Raises:
        RecipeError: the mark whose label must be eos is to be learned itself.
    """
    pieces: list[_Piece] = []
    ends: bool | None = None  # a reply without an end token stands just before; whether it is learned
    for part in parts:
        for piece in tokenizer.split_marks(part.text, marks) if part.mark else (part.text,):
            last = pieces[-1] if pieces else None
            if (
                last
                and isinstance(piece, str)
                and isinstance(last.what, str)
                and last.learn == part.learn
                and ends is None
            ):
                pieces[-1] = last._replace(what=last.what + piece)
            elif piece != "":
                pieces.append(_Piece(piece, part.learn, bool(ends)))
                ends = None
        ends = part.learn if part.ends else ends
    ids: list[int] = []
    labels: list[int] = []
    before: Before = "nothing"
    for i, (what, learn, end) in enumerate(pieces):
        new = [what] if isinstance(what, int) else tokenizer.ids(_stripped(tokenizer, pieces, i), before)
        if end and learn:
            raise RecipeError(
                f"template {name!r} learns eos at the next turn's mark, so train_on_prompt cannot be used"
            )
        ids += new
        labels += new if learn else [IGNORE] * len(new)
        if end and new and tokenizer.eos_id is not None:
            labels[-len(new)] = tokenizer.eos_id
        before = "control" if isinstance(what, int) else "text"
    if ends is not None and tokenizer.eos_id is not None:
        ids.append(tokenizer.eos_id)
        labels.append(tokenizer.eos_id if ends else IGNORE)
    return Encoded(ids, labels)


class _Piece(NamedTuple):
    """A control token's id, or the text between two boundaries; `end`: the label of its first token is eos."""

    what: int | str
    learn: bool
    end: bool


def _stripped(tokenizer: Tokenizer, pieces: list[_Piece], i: int) -> str:
    """Text number `i` without the white space that the control tokens beside it swallow."""
    text = str(pieces[i].what)
    if i and isinstance(before := pieces[i - 1].what, int) and tokenizer.strips(before)[1]:
        text = text.lstrip()
    if i + 1 < len(pieces) and isinstance(behind := pieces[i + 1].what, int) and tokenizer.strips(behind)[0]:
        text = text.rstrip()
    return text


class _Writer:
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


def _plain(value: Any) -> Any:
    """JSON form of a template's nested values."""
    return dict(value) if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in fields(value)}
