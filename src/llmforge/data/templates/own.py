"""`template: auto`: the chat template that the tokenizer brings, with its learned spans found by rendering.

A typed control token (in a message, a tool's description or a call's arguments) is rendered as a stand-in and put back
as text afterwards. Where the template does more with such a text than print it, the row is refused. Everything else is
rendered as it is, so the ids are those of transformers.

What a reply learns is found by incremental rendering: the row must begin with the prompt that would have asked for the
reply. Where it does not, training on it would be training on something the model is never asked, and that is an error.
A template with `{% generation %}` says by itself what is learned.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llmforge.data.example import Message
from llmforge.data.templates.sandbox import GENERATION, render
from llmforge.data.templates.slot import Part
from llmforge.data.templates.template import REPLIES, LabelPolicy, Template
from llmforge.data.templates.thinking import Thinking, split_reasoning
from llmforge.data.templates.tools import wrapped
from llmforge.data.tokenizer import CONFIG_TOKENS, Tokenizer
from llmforge.errors import RecipeError

OPENING, CLOSING = "\ue010", "\ue011"  # private-use characters around the number of a hidden text
STAND_IN = re.compile(f"{OPENING}(\\d+){CLOSING}")
THINK_PROMPT = re.compile(r"<think>\s*(</think>\s*)?$")
SYNTAX_SIGNS = (
    ("<tool_call>", "qwen"),
    ("[TOOL_CALLS]", "mistral"),
    ('"parameters": ', "llama3"),
    ("<|observation|>", "glm4"),
)


def own_template(tokenizer: Tokenizer) -> OwnTemplate:
    """The tokenizer's chat template as a value.

    Raises:
        RecipeError: the tokenizer has none.
    """
    source = tokenizer.chat_template
    if not source:
        raise RecipeError(
            f"template: auto needs a chat template, and the tokenizer of {tokenizer.folder} has none; name a template"
        )
    syntax = next((name for sign, name in SYNTAX_SIGNS if sign in source and "tools" in source), None)
    asks = THINK_PROMPT.search(_prompt(tokenizer)) if "<think>" in source else None
    return OwnTemplate(
        name="auto",
        source=f"the chat template of {tokenizer.folder.name}",
        suffix="",
        tool_syntax=syntax,
        thinking=Thinking(asks=asks is not None) if "<think>" in source else None,
        chat_template=source,
    )


def _prompt(tokenizer: Tokenizer) -> str:
    """The tokenizer's own prompt for one short question, with thinking as the template likes it."""
    asked = [{"role": "user", "content": "?"}]
    return render(tokenizer.chat_template or "", messages=asked, add_generation_prompt=True, **_names(tokenizer))


@dataclass(frozen=True)
class OwnTemplate(Template):
    """A jinja chat template behind the same methods as a template of slots."""

    chat_template: str = ""

    def parts(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        policy: LabelPolicy = REPLIES,
    ) -> list[Part]:
        if not messages:
            raise RecipeError("template 'auto': a conversation without messages cannot be written")
        messages = list(messages)
        if self.default_system and messages[0].role != "system":
            messages = [Message("system", self.default_system, train=False), *messages]
        return _Conversation(self, tokenizer, messages, tools).parts(add_generation_prompt, policy)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Render a small conversation, so that a broken chat template is found at once."""
        self.parts(tokenizer, [Message("user", "?")], add_generation_prompt=True)

    def stop_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The token that the chat template ends a reply with, then eos and what generation_config.json names."""
        try:
            row = self.parts(tokenizer, [Message("user", "?"), Message("assistant", "!")])
        except RecipeError:
            row = []  # it has no end token of its own; encoding a row to train on says so
        learned = [piece for part in row if part.learn and part.mark for piece in tokenizer.split_marks(part.text)]
        ends = [piece for piece in learned if isinstance(piece, int)][-1:]
        return list(dict.fromkeys(i for i in [*ends, tokenizer.eos_id, *tokenizer.stop_ids] if i is not None))

    def jinja(self, tokenizer: Tokenizer) -> str:
        """The chat template itself, behind what the recipe has changed in it."""
        changes = ""
        if self.default_system:
            system = f"[{{'role': 'system', 'content': {json.dumps(self.default_system, ensure_ascii=False)}}}]"
            changes += (
                f"{{%- if messages[0]['role'] != 'system' %}}{{%- set messages = {system} + messages %}}{{%- endif %}}"
            )
        if self.thinking and self.enable_thinking is False:
            changes += "{%- set enable_thinking = false %}"
        return changes + self.chat_template


class _Rendered(NamedTuple):
    """Rendered text in which `texts` stand behind stand-ins.

    `spans` are what {% generation %} marks; `contents` are the messages' contents with their stand-ins.
    """

    text: str
    texts: list[str]
    spans: list[tuple[int, int]]
    contents: list[str]


class _Conversation:
    """One conversation under one chat template."""

    def __init__(
        self, template: OwnTemplate, tokenizer: Tokenizer, messages: list[Message], tools: Sequence[Mapping[str, Any]]
    ):
        if template.thinking and template.enable_thinking is False:
            messages = [replace(split_reasoning(m), reasoning=None) if m.role == "assistant" else m for m in messages]
        self.template, self.tokenizer, self.messages = template, tokenizer, messages
        self.tools = [dict(wrapped(tool)) for tool in tools]

    def parts(self, generate: bool, policy: LabelPolicy) -> list[Part]:
        if generate and self.messages[-1].role == "assistant":
            asked = self.render(len(self.messages) - 1, True)
            return [*_split(asked, [], False), Part(self.messages[-1].content, False)]
        row = self.render(len(self.messages), generate)
        if (
            not generate and self.messages[-1].role == "assistant"
        ):  # a separator between turns is no suffix of the last one
            row = row._replace(text=row.text.rstrip())
        return _split(row, [] if generate else self.learned(row, policy), policy.train_on_prompt)

    def render(self, count: int, generate: bool) -> _Rendered:
        """The first `count` messages, with a stand-in for each text that holds a control token."""
        hidden = _Hidden([*self.tokenizer.controls, *GENERATION, OPENING])
        tools = [hidden.json(tool) for tool in self.tools]  # first, so that the numbers do not depend on `count`
        messages = [hidden.message(message) for message in self.messages[:count]]
        safe = self.run(messages, tools, generate)
        if hidden.texts:
            shown = _Hidden([])
            real = self.run([shown.message(m) for m in self.messages[:count]], self.tools, generate)
            if STAND_IN.sub(lambda found: hidden.texts[int(found[1])], safe) != real:
                raise RecipeError(
                    "template 'auto': a text holds a control token, and the model's chat template does more with the "
                    "text than print it, so the two cannot be kept apart; name a template, or take the token out"
                )
        pieces = re.split(f"({GENERATION[0]}|{GENERATION[1]})", safe)
        text, starts, spans = "", [], []
        for piece in pieces:
            if piece == GENERATION[0]:
                starts.append(len(text))
            elif piece == GENERATION[1]:
                spans.append((starts.pop(), len(text)))
            else:
                text += piece
        return _Rendered(text, hidden.texts, spans, [message["content"] for message in messages])

    def run(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], generate: bool) -> str:
        values: dict[str, Any] = _names(self.tokenizer)
        if self.template.enable_thinking is not None:
            values["enable_thinking"] = self.template.enable_thinking
        return render(
            self.template.chat_template,
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=generate,
            **values,
        )

    def learned(self, row: _Rendered, policy: LabelPolicy) -> list[tuple[int, int]]:
        """Where the row is learned, as positions in its text."""
        if any(m.train and m.role != "assistant" for m in self.messages):
            raise RecipeError(
                "template 'auto' learns replies only; `train: true` stands at another turn. Name a template"
            )
        replies = [i for i, message in enumerate(self.messages) if message.role == "assistant"]
        if row.spans and len(row.spans) != len(replies):
            raise RecipeError(
                f"template 'auto': {{% generation %}} marks {len(row.spans)} texts, and the row has "
                f"{len(replies)} replies; name a template"
            )
        spans = []
        for number, i in enumerate(replies):
            message = self.messages[i]
            wanted = message.train if message.train is not None else not policy.mask_history or i == replies[-1]
            if not wanted:
                continue
            span = row.spans[number] if row.spans else self.span(row, i)
            if span:
                spans.append(span)
        return spans

    def span(self, row: _Rendered, i: int) -> tuple[int, int] | None:
        """Start and end of reply `i`, its end token included; None for a reply whose reasoning the template dropped."""
        asked, told = self.render(i, True).text, self.render(i + 1, False).text
        last = i == len(self.messages) - 1
        if not row.text.startswith(asked) and not last:
            asked = THINK_PROMPT.sub("", asked)  # think blocks of earlier turns are gone, the one of the prompt too
        if not row.text.startswith(asked):
            raise RecipeError(
                f"template 'auto': the prompt for reply {i + 1} ends in {asked[-40:]!r}, and the whole row reads "
                f"{_around(row.text, asked)!r} there, so what the reply learns cannot be told; name a template"
            )
        start, end = len(asked), min(len(told), len(row.text))
        if not (row.text + told[len(row.text) :]).startswith(told):
            reply = split_reasoning(replace(self.messages[i], content=row.contents[i]))
            body = reply.content.strip()
            at = row.text.find(body, start) if body else -1
            tail = told[told.rfind(body) + len(body) :] if body else ""
            if at < 0 or row.text[start:at].strip() or not row.text.startswith(tail, at + len(body)):
                raise RecipeError(
                    f"template 'auto': reply {i + 1} reads differently once the conversation goes on "
                    f"({_around(row.text, told)!r}), so what it learns cannot be told; name a template"
                )
            if reply.reasoning is not None:
                return None
            end = at + len(body) + len(tail)
        ends = [found.end() for found in self.control_names().finditer(row.text, start, end)]
        if not ends or row.text[ends[-1] : end].strip():
            tail = row.text[start:end][-20:]
            raise RecipeError(
                f"template 'auto': the chat template ends reply {i + 1} with {tail!r}, which holds no end token, so "
                "the model would not learn to stop; name a template"
            )
        return start, ends[-1]

    def control_names(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.tokenizer.controls, key=len, reverse=True))) or "(?!)")


class _Hidden:
    """Messages as chat templates expect them, with stand-ins for the texts that hold one of `names`."""

    def __init__(self, names: Sequence[str]):
        self.texts: list[str] = []
        self.names = [name for name in names if name not in ("<think>", "</think>")]
        self.all_names = names

    def message(self, message: Message) -> dict[str, Any]:
        value: dict[str, Any] = {
            "role": message.role,
            "content": self.write(message.content, message.role == "assistant"),
        }
        if message.reasoning is not None:
            value["reasoning_content"] = self.write(message.reasoning)
        if message.tool_calls:
            calls = [{"name": call.name, "arguments": self.json(call.arguments)} for call in message.tool_calls]
            value["tool_calls"] = [{"type": "function", "function": call} for call in calls]
            for call, written in zip(message.tool_calls, value["tool_calls"], strict=True):
                if call.id is not None:
                    written["id"] = call.id
        return value

    def write(self, text: str, may_think: bool = False) -> str:
        """The text, or its stand-in between its outer white space (so that a template that trims still trims).

        The think tags of a reply stay visible, since templates cut at them.
        """
        names = self.names if may_think else self.all_names
        if not any(name in text for name in names):
            return text
        if may_think and "</think>" in text:
            return "".join(p if i % 2 else self.write(p, True) for i, p in enumerate(re.split("(</?think>)", text)))
        inner = text.strip()
        before, _, after = text.partition(inner)
        return f"{before}{self.hide(inner)}{after}"

    def json(self, value: Any) -> Any:
        """Strings of a JSON value that hold a control token become stand-ins for their JSON spelling."""
        if isinstance(value, Mapping):
            return {self.json(key): self.json(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.json(inner) for inner in value]
        if isinstance(value, str) and any(name in value for name in self.all_names):
            return self.hide(json.dumps(value, ensure_ascii=False)[1:-1])
        return value

    def hide(self, text: str) -> str:
        self.texts.append(text)
        return f"{OPENING}{len(self.texts) - 1}{CLOSING}"


def _split(row: _Rendered, spans: list[tuple[int, int]], train_on_prompt: bool) -> list[Part]:
    """The rendered text as parts: cut where learning starts and ends, and at stand-ins."""
    borders = sorted({0, len(row.text), *(at for span in spans for at in span)})
    parts = []
    for start, end in itertools.pairwise(borders):
        learn = train_on_prompt or any(first <= start and end <= last for first, last in spans)
        for i, piece in enumerate(STAND_IN.split(row.text[start:end])):
            parts.append(Part(row.texts[int(piece)], False, learn) if i % 2 else Part(piece, True, learn))
    return [part for part in parts if part.text]


def _names(tokenizer: Tokenizer) -> dict[str, Any]:
    """The special tokens that chat templates may use by name; those the tokenizer lacks stay undefined."""
    return {key: token for key in CONFIG_TOKENS if (token := getattr(tokenizer, key)) is not None}


def _around(text: str, other: str) -> str:
    """What `text` says where `other` stops agreeing with it."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return text[max(0, same - 20) : same + 20]
