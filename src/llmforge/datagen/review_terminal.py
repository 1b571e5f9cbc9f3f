"""Review in a terminal: one row, one key. Without a terminal the same letters are read as lines from standard input."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from llmforge.datagen.patches import DECIDED
from llmforge.datagen.pointer import pointer_of, value_at
from llmforge.datagen.review import Item, Review
from llmforge.errors import RecipeError
from llmforge.metrics.json_text import MISSING

KEYS = {"a": "accepted", "r": "rejected", "s": "skipped"}
HELP = "[a]ccept  [r]eject  [e]dit  [s]kip  [b]ack  [q]uit"
EDIT_HELP = "FIELD=VALUE, for example input=... ; nothing keeps the row as it is"


def review_rows(review: Review, author: str, source: TextIO | None = None, out: TextIO | None = None) -> int:
    """Show the undecided rows of the sample one by one and keep each decision at once; returns how many were made.

    Each answer is one letter of `HELP`; in lines, a word after it is the note ("r wrong code") or the edit
    ("e output=..."). The end of the input ends the review.
    """
    source, out = source or sys.stdin, out or sys.stdout
    on_terminal = source.isatty()
    ask = _key if on_terminal else _line
    todo = [
        item.id for item in review.items() if item.sampled and item.state not in DECIDED and item.state != "skipped"
    ]
    place, made = 0, 0
    while place < len(todo):
        item = review.item(todo[place])
        print(f"\n{_shown(item, review.fields)}\n{place + 1} of {len(todo)}  {HELP}", file=out, flush=True)
        answer = ask(source)
        letter, _, rest = (answer or "q").strip().partition(" ")
        if letter == "q":
            break
        if letter == "b":
            place = max(0, place - 1)
            continue
        try:
            if letter in KEYS:
                review.decide(item.id, KEYS[letter], author, note=rest)  # type: ignore[arg-type]  # the values of KEYS are states
            elif letter == "e":
                if not rest and on_terminal:
                    print(EDIT_HELP, file=out, flush=True)
                    rest = source.readline().rstrip("\n")
                if not rest:
                    continue
                review.decide(item.id, "edited", author, new=_edit(item, rest))
            else:
                print(f"{letter!r} is no answer; {HELP}", file=out, flush=True)
                continue
        except RecipeError as error:
            print(error, file=out, flush=True)
            continue
        made += 1
        place += 1
    return made


def _edit(item: Item, text: str) -> dict[str, Any]:
    """FIELD=VALUE; the value is JSON where the field is no text."""
    field, equals, value = text.partition("=")
    old = value_at(item.reviewed.row, pointer_of(field.strip()))
    if not equals or old is MISSING:
        raise RecipeError(f"review: {text!r} is no edit: {EDIT_HELP}")
    if isinstance(old, str):
        return {field.strip(): value.replace("\\n", "\n")}
    try:
        return {field.strip(): json.loads(value)}
    except ValueError as error:
        raise RecipeError(f"review: {field}: not valid JSON ({error})") from None


def _shown(item: Item, fields: list[str]) -> str:
    lines = [f"row {item.id}  {item.state}" + (f"  ({item.reviewed.stale})" if item.reviewed.stale else "")]
    for place in fields:
        value = value_at(item.reviewed.row, place)
        if value is not MISSING:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
            lines.append(f"{place[1:].replace('/', '.')}: {_printable(text)}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Text without the control characters that would move the cursor or change colours."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)


def _line(source: TextIO) -> str:
    return source.readline()


def _key(source: TextIO) -> str:
    """One key, without waiting for return; a whole line where the terminal cannot do that."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return source.readline()
    with _restored(source, termios.tcgetattr, termios.tcsetattr, termios.TCSADRAIN):
        tty.setcbreak(source.fileno(), termios.TCSANOW)  # the default would throw away what was typed ahead
        return os.read(source.fileno(), 1).decode(errors="replace")


@contextlib.contextmanager
def _restored(source: TextIO, get: Callable, put: Callable, when: int) -> Iterator[None]:
    """The terminal's settings as they were, also after an interrupt."""
    before = get(source.fileno())
    try:
        yield
    finally:
        put(source.fileno(), when, before)
