"""A conversation with one to three models at once: what was said, what is being written, votes, and how it is shown."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock

from llmforge.webui.board import Board
from llmforge.webui.chat_client import Asked, Message, Reply, Target
from llmforge.webui.markup import Safe, tag
from llmforge.webui.refusal import said
from llmforge.webui.words import Words

MOST_COLUMNS = 3
VOTES = "chat_votes.jsonl"
LETTERS = "ABC"


@dataclass
class Column:
    """One model's side of the talk."""

    target: Target
    name: str
    messages: list[Message] = field(default_factory=list)
    reply: Reply | None = None

    def close(self) -> None:
        """The reply becomes a message; one that failed does not."""
        if self.reply and self.reply.text:
            self.messages.append({"role": "assistant", "content": self.reply.text})


@dataclass
class Talk:
    """All columns; `blind` hides their names until a vote."""

    columns: list[Column] = field(default_factory=list)
    blind: bool = False
    voted: str = ""
    drawn: Asked = field(default_factory=Asked)  # how the answers are drawn

    @property
    def is_hidden(self) -> bool:
        return self.blind and not self.voted

    @property
    def is_written(self) -> bool:
        """Whether an answer is still being written."""
        return any(column.reply and not column.reply.is_over for column in self.columns)

    @property
    def is_votable(self) -> bool:
        """Whether two answers stand side by side that nobody voted on."""
        both = len(self.columns) == 2 and all(column.reply and column.reply.text for column in self.columns)
        return both and not self.is_written and not self.voted

    def written(self) -> list[tuple[str, int]]:
        """How far each answer is: its state, and its length so far."""
        return [(column.reply.state, len(column.reply.text)) for column in self.columns if column.reply]

    def heading(self, words: Words, number: int) -> str:
        """What stands over a column."""
        letter = words("chat.side", letter=LETTERS[number])
        name = self.columns[number].name
        return letter if self.is_hidden else f"{letter}: {name}" if self.blind else name

    def begin(
        self,
        chosen: Sequence[tuple[Target, str]],
        prompt: str,
        system: str,
        blind: bool,
        drawn: Asked | None = None,
    ) -> None:
        """The next question to all; the talk starts anew when other models are asked. Blind, who answers where changes
        with every question."""
        targets = [target for target, _ in chosen]
        if sorted(map(repr, targets)) != sorted(repr(column.target) for column in self.columns) or blind != self.blind:
            self.columns = [Column(target, name) for target, name in chosen]
        if blind:
            random.SystemRandom().shuffle(self.columns)
        self.blind, self.voted, self.drawn = blind, "", drawn or Asked()
        for column in self.columns:
            begins = [{"role": "system", "content": system}] if system else []
            said = [message for message in column.messages if message["role"] != "system"]
            while said and said[-1]["role"] == "user":  # a question that got no answer
                said.pop()
            column.messages = [*begins, *said, {"role": "user", "content": prompt}]
            column.reply = Reply()

    def drop_last(self) -> str:
        """Take back the last question with its answers; the question."""
        asked = ""
        for column in self.columns:
            while column.messages and column.messages[-1]["role"] == "assistant":
                column.messages.pop()
            if column.messages and column.messages[-1]["role"] == "user":
                asked = column.messages.pop()["content"]
            column.reply = None
        self.voted = ""
        return asked

    def vote(self, board: Board, choice: str) -> None:
        """Keep a vote ("A", "B", "tie", "bad") with the question and who was who, one line a vote."""
        self.voted = choice
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "messages": self.columns[0].messages[:-1],
            "answers": [
                {"model": column.target.model, "server": column.target.url, "name": column.name, "text": _last(column)}
                for column in self.columns
            ],
            "vote": choice,
            "blind": self.blind,
            "settings": self.drawn.settings,
        }
        folder = board.root / "work"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f".{VOTES}.lock"), open(folder / VOTES, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def show_talk(words: Words, talk: Talk) -> Safe:
    """All columns side by side; on a phone below each other."""
    if not talk.columns:
        return tag("p", words("chat.empty"), class_="calm")
    shown = [_column(words, talk, number, column) for number, column in enumerate(talk.columns)]
    return tag("div", *shown, class_=f"talk columns-{len(shown)}")


def _column(words: Words, talk: Talk, number: int, column: Column) -> Safe:
    name, reply = talk.heading(words, number), column.reply
    done = len(column.messages) and column.messages[-1]["role"] == "assistant"
    said = [message for message in column.messages if message["role"] != "system"]
    before = said[:-1] if reply and done else said
    return tag(
        "section",
        tag("h2", name),
        *(_bubble(words, message["role"], message["content"]) for message in before),
        _growing(words, reply) if reply else None,
        class_="side",
        aria_label=name,
    )


def _bubble(words: Words, role: str, text: str, *more: Any) -> Safe:
    return tag(
        "div",
        tag("span", words(f"data.role_{role}"), class_="who"),
        tag("p", text),
        *more,
        class_=f"bubble {role}",
    )


def _growing(words: Words, reply: Reply) -> Safe:
    """The newest reply with how it stands."""
    if reply.state != "done":
        told = words(f"chat.reply_{reply.state}")
    else:
        shown = {"seconds": f"{reply.took_s:.1f}", "first": f"{reply.first_s or 0:.1f}"}
        told = words("chat.took", n=reply.tokens, **shown)
        told += f" · {words('chat.cut')}" if reply.finish == "length" else ""
    if reply.score is not None:
        told += f" · {words('chat.score', value=f'{reply.score:.3f}')}"
    note = tag("small", told, class_="bad" if reply.state == "failed" else "calm")
    wrong = tag("p", said(words, reply.error), class_="bad", role="alert") if reply.error else None
    return _bubble(words, "assistant", reply.text, wrong, note)


def _last(column: Column) -> str:
    return column.messages[-1]["content"] if column.messages else ""
