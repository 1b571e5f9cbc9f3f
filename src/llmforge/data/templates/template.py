"""`Template`: how a conversation becomes token ids and labels, for training, chat, API and export alike.

The value is here, the order of things in a row in `writer`, the step from text to ids in `parts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llmforge.data.example import IGNORE, Encoded, Message
from llmforge.data.templates.parts import Chunk, cut, encode_chunks
from llmforge.data.templates.slot import Part, fill
from llmforge.data.templates.thinking import Thinking, split_reasoning
from llmforge.data.templates.tools import ToolSyntax, get_syntax
from llmforge.data.templates.writer import Writer, slot_values
from llmforge.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class LabelPolicy:
    """Which parts of a row are learned beside or instead of every reply; `Message.train` overrides it for one turn."""

    train_on_prompt: bool = False  # prompts too
    mask_history: bool = False  # only the last reply


REPLIES = LabelPolicy()


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
        eos_follows: a finished reply has no end token of its own; the label under the next mark is eos, and eos closes
            a row that ends in a reply (Baichuan2, ChatGLM).
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
        policy: LabelPolicy = REPLIES,
    ) -> Encoded:
        """Ids and labels of a conversation.

        With `add_generation_prompt` the row ends where the model goes on: after the reply's opening, or inside the last
        reply when the messages end with one (a prefix that the model continues), and nothing in it is learned.

        Raises:
            RecipeError: the conversation does not fit the template, or the tokenizer lacks a token of it.
        """
        parts = self.parts(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt, policy=policy)
        row = encode_chunks(cut(parts, tokenizer, self.marks, self.name), tokenizer)
        return Encoded(row.input_ids, [IGNORE] * len(row.input_ids)) if add_generation_prompt else row

    def chunks(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        policy: LabelPolicy = REPLIES,
    ) -> list[Chunk]:
        """The row cut at its boundaries: what `encode` encodes, so that the texts of many rows can go in one call.

        Raises:
            RecipeError: as `encode`.
        """
        return cut(self.parts(tokenizer, messages, tools, policy=policy), tokenizer, self.marks, self.name)

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
        policy: LabelPolicy = REPLIES,
    ) -> list[Part]:
        """The conversation as pieces of the template's own and of other people's text."""
        return Writer(self, tokenizer, policy).write(list(messages), list(tools), add_generation_prompt)

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

        The text may begin inside the think block, where the prompt has opened it, and may be cut off inside it.
        """
        if self.thinking and self.thinking.asks and self.enable_thinking and not text.lstrip().startswith("<think>"):
            text = f"<think>{text}"
        message = split_reasoning(Message("assistant", text))
        if message.content is text and text.lstrip().startswith("<think>"):
            message = replace(message, content="", reasoning=text.lstrip().removeprefix("<think>").strip())
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


def _plain(value: Any) -> Any:
    """JSON form of a template's nested values."""
    return dict(value) if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in fields(value)}
