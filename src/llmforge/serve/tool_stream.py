"""Tool calls out of a reply while it grows: text goes out as text, a call's arguments as they are written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from llmforge.data.example import Message

THINK, END_OF_THINK = "<think>", "</think>"
# {"name": "f", "arguments": {   as Qwen and Mistral write it; Llama 3 says "parameters".
OBJECT = r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
REST = r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}\s*'


@dataclass(frozen=True)
class Syntax:
    """How calls stand in a text, as far as it takes to see them come.

    Attributes:
        openers: texts of which one opens a call; with `at_start` only at the start of the reply.
        head: from there to the arguments; `name` is the function's, as JSON or bare.
        tail: behind the arguments; group `more` is there when another call follows at once.
    """

    openers: tuple[str, ...]
    head: re.Pattern[str]
    tail: re.Pattern[str]
    at_start: bool = False


QWEN = Syntax(
    ("\n<tool_call>", "<tool_call>"), re.compile(rf"\n?<tool_call>\s*{OBJECT}"), re.compile(rf"{REST}</tool_call>")
)
SYNTAXES = {
    "qwen": QWEN,
    "hermes": QWEN,
    "mistral": Syntax(
        ("[TOOL_CALLS]", "[{"),
        re.compile(rf"\s*(?:\[TOOL_CALLS\])?\s*\[?\s*{OBJECT}"),
        re.compile(rf"{REST}(?:(?P<more>,)|\])"),
        at_start=True,
    ),
    "llama3": Syntax(
        ("<|python_tag|>", "{", "["),
        re.compile(rf"\s*(?:<\|python_tag\|>)?\s*\[?\s*{OBJECT}"),
        re.compile(rf"{REST}(?:(?P<more>,)|\]|$)?"),
        at_start=True,
    ),
    "default": Syntax(
        ("\nAction:", "Action:"),
        re.compile(r"\n?Action:[ \t]*(?P<name>\S+)\s*Action Input:\s*(?=\{)"),
        re.compile(r"(?=\s)"),
    ),
}


@dataclass(frozen=True)
class Part:
    """What a delta of a stream says: text, reasoning, the name that opens call number `index`, or its arguments."""

    kind: Literal["content", "reasoning", "name", "arguments"]
    text: str
    index: int = 0


class CallStream:
    """Reads one reply of a model that has tools.

    It gives out early what is certain; `finish` adds the rest from the reply as the engine read it, so that a stream
    and a plain answer hold the same calls.

    Args:
        tool_format: the model's; None or one not known here: everything comes with `finish`.
        only_first: leave out every call but the first.
    """

    def __init__(self, tool_format: str | None, *, only_first: bool = False):
        self.syntax = SYNTAXES.get(tool_format or "")
        self.only_first = only_first
        self._held = ""
        self._where = "start"  # then text, head, arguments, tail, or rest: held to the end
        self._content = ""
        self._has_reasoned = False
        self._num_calls = 0
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, text: str) -> list[Part]:
        """Add text; returns what can be given out."""
        self._held += text
        parts: list[Part] = []
        if self.syntax is not None:
            steps = {"start": self._start, "text": self._text, "head": self._head, "arguments": self._arguments}
            while self._where != "rest" and steps.get(self._where, self._tail)(parts, self.syntax):
                pass
        return [part for part in parts if part.text and not (self.only_first and part.index)]

    def finish(self, message: Message) -> list[Part]:
        """The rest, from the whole reply."""
        parts = []
        if message.reasoning and not self._has_reasoned:
            parts.append(Part("reasoning", message.reasoning))
        is_cut = self._where in ("arguments", "tail") and len(message.tool_calls) < self._num_calls
        if message.content.startswith(self._content) and not is_cut:
            parts.append(Part("content", message.content[len(self._content) :]))
        for index, call in enumerate(message.tool_calls[: 1 if self.only_first else None]):
            if index >= self._num_calls:
                parts.append(Part("name", call.name, index))
                parts.append(Part("arguments", json.dumps(call.arguments, ensure_ascii=False), index))
        return [part for part in parts if part.text]

    def _start(self, parts: list[Part], syntax: Syntax) -> bool:
        """A think block comes before everything."""
        opening = self._held.lstrip()
        if not opening or (THINK.startswith(opening) and opening != THINK):
            return False
        if not opening.startswith(THINK):
            self._where = "text"
            return True
        before, closed, after = opening.removeprefix(THINK).partition(END_OF_THINK)
        if not closed or not after.strip():
            return False  # white space behind the block belongs to it
        parts.append(Part("reasoning", before.strip()))
        self._has_reasoned, self._held, self._where = True, after.lstrip(), "text"
        return True

    def _text(self, parts: list[Part], syntax: Syntax) -> bool:
        if syntax.at_start:
            return self._opening_text(parts, syntax)
        places = [place for opener in syntax.openers if (place := self._held.find(opener)) >= 0]
        if places:
            self._give_text(parts, min(places))
            self._where = "head"
            return True
        longest = max(map(len, syntax.openers))
        kept = next(
            (
                n
                for n in range(min(longest, len(self._held)), 0, -1)
                if any(opener.startswith(self._held[-n:]) for opener in syntax.openers)
            ),
            0,
        )
        self._give_text(parts, len(self._held) - kept)
        return False

    def _opening_text(self, parts: list[Part], syntax: Syntax) -> bool:
        opening = self._held.lstrip()
        if not self._content and any(opening.startswith(opener) for opener in syntax.openers):
            self._where = "head"
            return True
        if self._content or (opening and not any(opener.startswith(opening) for opener in syntax.openers)):
            self._give_text(parts, len(self._held))
        return False

    def _give_text(self, parts: list[Part], length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        self._content += text
        parts.append(Part("content", text))

    def _head(self, parts: list[Part], syntax: Syntax) -> bool:
        found = syntax.head.match(self._held)
        if not found:
            return False
        name = found["name"]
        try:
            name = json.loads(name) if name.startswith('"') else name
        except ValueError:
            self._where = "rest"
            return False
        parts.append(Part("name", name, self._num_calls))
        self._held, self._where, self._depth = self._held[found.end() :], "arguments", 0
        self._num_calls += 1
        return True

    def _arguments(self, parts: list[Part], syntax: Syntax) -> bool:
        for place, letter in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = letter == "\\", letter != '"'
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    parts.append(Part("arguments", self._held[: place + 1], self._num_calls - 1))
                    self._held, self._where = self._held[place + 1 :], "tail"
                    return True
        parts.append(Part("arguments", self._held, self._num_calls - 1))
        self._held = ""
        return False

    def _tail(self, parts: list[Part], syntax: Syntax) -> bool:
        found = syntax.tail.match(self._held)
        if not found:
            return False
        self._held = self._held[found.end() :]
        if syntax.at_start:
            self._where = "head" if found.groupdict().get("more") else "rest"
        else:
            self._where = "text"
        return True
