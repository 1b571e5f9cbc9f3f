"""Conversations copied from the web, made fit for training: mended where that is safe, left out with a cause where not.

The causes are those of FastChat's cleaning scripts (fastchat/data), without their damage to plain text.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from llmforge.data.example import RowRef, RowReport
from llmforge.datagen.chats import Chat, Turn
from llmforge.datagen.html_text import to_text
from llmforge.datagen.prompt import CONTROL
from llmforge.datagen.row_files import Row
from llmforge.datagen.step_keys import CleanConfig

COPIED_CODE = re.compile(r"```[ \t]*\n?([\w+#.-]*)[ \t]*(?:Copy code)+[ \t]*\n?(.*?)```", re.DOTALL)
EMPTY_CODE = re.compile(r"```[\w+#.-]*\s*```\n?")
PAGER = re.compile(r"^\d+ / \d+$\n?", re.MULTILINE)  # which of several answers the page showed
COPY_COUNT = re.compile(r"Copy\d+ chars / \d+ words\n?")
RATE_LIMIT = re.compile(r"too many requests in 1 hour\. try again later|an error occurred\. either the engine", re.I)
RESTARTED_LIST = re.compile(r"^1\. [^\n]*\n+1\. [^\n]*\n+1\. ", re.MULTILINE)  # 1. 1. 1. instead of 1. 2. 3.
SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
)
SHARE = 0.1  # of the letters; Chinese text quotes English words, and hardly the other way round


class Cleaned(NamedTuple):
    """A row that stays, and where it was."""

    source: RowRef
    row: Row


def clean_rows(rows: Iterable[tuple[RowRef, Row]], config: CleanConfig, report: RowReport) -> list[Cleaned]:
    """Rows fit for training; the report names every other row with its cause, and every change."""
    kept: list[Cleaned] = []
    ids: dict[str, RowRef] = {}
    questions: dict[tuple[str, ...], RowRef] = {}
    for source, row in rows:
        try:
            chat = Chat.of(row)
            if row.get("plugins"):
                raise ValueError("a chat with plugins")
            turns = [_mended(turn, config, source, report) for turn in chat.turns]
            turns = _trimmed(turns, source, report)
            _check(turns, config)
        except ValueError as cause:
            report.reject(source, str(cause))
            continue
        name = row.get("id")
        if name is not None and str(name) in ids:
            report.reject(source, "the id stands twice")
            continue
        first = tuple(turn.text.strip() for turn in turns if turn.role in ("user", "assistant"))[:2]
        if first in questions:
            report.reject(source, "the first question and answer stand twice")
            continue
        ids[str(name)] = questions[first] = source
        kept.append(Cleaned(source, chat.with_turns(turns)))
    report.rows_out = len(kept)
    return kept


def mended_text(text: str, html: str = "auto") -> str:
    """A turn's text without what the page around it left: tags, buttons, counters, empty code blocks."""
    text = to_text(text) if html == "auto" else text
    text = COPIED_CODE.sub(lambda m: f"```{m[1]}\n{m[2].strip(chr(10))}\n```", text)
    text = PAGER.sub("", COPY_COUNT.sub("", EMPTY_CODE.sub("", text)))
    return text


def language(text: str) -> str:
    """zh, ja, ko, ru, ar by their script; en for everything else. Kana make Chinese characters Japanese."""
    letters = sum(unicodedata.category(c).startswith("L") for c in text) or 1
    return next((name for name, script in SCRIPTS if len(script.findall(text)) > SHARE * letters), "en")


def _mended(turn: Turn, config: CleanConfig, source: RowRef, report: RowReport) -> Turn:
    text = mended_text(turn.text, config.html)
    if text != turn.text:
        report.fix(source, f"a {turn.role} turn: remains of a web page taken out")
    plain = CONTROL.sub(lambda match: match[0] + " ", text)
    if plain != text:
        report.fix(source, f"a {turn.role} turn: a blank put into the text of a control token")
    return turn.with_text(plain) if plain != turn.text else turn


def _trimmed(turns: list[Turn], source: RowRef, report: RowReport) -> list[Turn]:
    """A system text, then turns from the first of the user to the last of the assistant.

    Raises:
        ValueError: nothing is left, or turns do not take turns.
    """
    system = [turn for turn in turns[:1] if turn.role == "system"]
    start = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role == "assistant"), 0)
    if end <= start:
        raise ValueError("no question followed by an answer")
    if end - start + len(system) < len(turns):
        report.fix(source, "turns before the first question or after the last answer cut")
    body = turns[start:end]
    for before, turn in itertools.pairwise(body):
        if turn.role == "system" or (before.role == turn.role and turn.role != "tool" and not _is_call(before, turn)):
            raise ValueError(
                f"two {turn.role} turns in a row" if turn.role != "system" else "a system text in the middle"
            )
    return [*system, *body]


def _is_call(before: Turn, turn: Turn) -> bool:
    """A text followed by the function call of the same answer."""
    return "function_call" in (turn.given.get("from"), before.given.get("from"))


def _check(turns: list[Turn], config: CleanConfig) -> None:
    """Raises ValueError with the cause for which a conversation is left out."""
    texts = [turn.text for turn in turns]
    joined = "\n".join(texts)
    replies = "\n".join(turn.text for turn in turns if turn.role == "assistant")
    if any(not turn.text.strip() and not turn.given.get("tool_calls") for turn in turns):
        raise ValueError("an empty turn")
    if RATE_LIMIT.search(replies):
        raise ValueError("a rate-limit message instead of an answer")
    lowered = joined.lower()
    for word in config.blocked:
        if word.lower() in lowered:
            raise ValueError(f"the blocked word {word!r}")
    if len("".join(texts)) < config.min_chars:
        raise ValueError(f"shorter than {config.min_chars} characters")
    if re.search(rf"(\d)\1{{{config.repeated_digits - 1}}}", joined):
        raise ValueError(f"{config.repeated_digits} equal digits in a row")
    if RESTARTED_LIST.search(replies):
        raise ValueError("a list numbered 1. 1. 1.")
    if config.keep_lang or config.skip_lang:
        found = language(joined)
        if found in config.skip_lang or (config.keep_lang and found not in config.keep_lang):
            raise ValueError(f"language {found}")
