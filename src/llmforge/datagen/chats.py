"""Conversations as rows of a file, in any of the spellings in use, changed without changing their spelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmforge.datagen.row_files import Row

KEYS = ("conversations", "messages", "conversation")
ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system",
    "tool": "tool", "observation": "tool", "function": "tool", "function_call": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One message: its role in our words, its text, and the object it was read from."""

    role: str
    text: str
    given: dict[str, Any]

    def with_text(self, text: str) -> Turn:
        """The same turn with another text."""
        key = "value" if "value" in self.given else "content"
        return Turn(self.role, text, {**self.given, key: text})


@dataclass(frozen=True)
class Chat:
    """A row's conversation; `key` is the column that holds it. An alpaca row has two turns and no such column."""

    row: Row
    key: str | None
    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, row: Row) -> Chat:
        """Read a row.

        Raises:
            ValueError: no conversation, a turn that is none, or an unknown role; in words.
        """
        key = next((name for name in KEYS if isinstance(row.get(name), list)), None)
        if key is None:
            raise ValueError(f"no conversation; expected a list in {', '.join(KEYS[:-1])} or {KEYS[-1]}")
        turns = []
        for item in row[key]:
            if not isinstance(item, dict):
                raise ValueError("a turn is no object")
            role, text = item.get("from", item.get("role")), item.get("value", item.get("content"))
            if role not in ROLES:
                raise ValueError(f"unknown role {str(role)[:40]!r}")
            if text is None and item.get("tool_calls"):
                text = ""
            if not isinstance(text, str):
                raise ValueError(f"the text of a {role} turn is no text")
            turns.append(Turn(ROLES[role], text, item))
        return cls(row, key, tuple(turns))

    def with_turns(self, turns: Sequence[Turn], **changes: Any) -> Row:
        """The row with other turns, and other columns where named."""
        return {**self.row, **changes, str(self.key): [turn.given for turn in turns]}

    def rounds(self) -> tuple[list[Turn], list[list[Turn]]]:
        """The system text before all, and the rounds: each begins with a user turn that follows an answer."""
        start = 0
        while start < len(self.turns) and self.turns[start].role == "system":
            start += 1
        rounds: list[list[Turn]] = []
        for turn in self.turns[start:]:
            if not rounds or (turn.role == "user" and rounds[-1][-1].role != "user"):
                rounds.append([])
            rounds[-1].append(turn)
        return list(self.turns[:start]), rounds
