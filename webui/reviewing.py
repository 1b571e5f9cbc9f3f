"""The reviews that are open on the board, and what the editor's texts make of a row."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from llmforge.datagen.pointer import value_at, with_value
from llmforge.metrics.json_text import MISSING
from llmforge.webui.board import Board
from llmforge.webui.refusal import Refusal
from llmforge.webui.review_queue import Place, Queue
from llmforge.webui.review_schema import answer_of, changes, schema_errors
from llmforge.webui.review_view import name_of
from llmforge.webui.words import Words


class Queues:
    """The open reviews of the board, shared by all who look at them."""

    def __init__(self, board: Board):
        self.board = board
        self._open: dict[tuple[Path, float], Queue] = {}
        self._lock = threading.Lock()

    def get(self, source: str, part: float = 1) -> Queue:
        """The review of a recipe or file, or of a random part of its rows, opened once.

        Raises:
            RecipeError: it cannot be reviewed, or lies outside of the project.
        """
        path = self.board.path(source, must_exist=True)
        with self._lock:
            queue = self._open.get((path, part))
            if queue is None or queue.is_outdated:
                queue = self._open[path, part] = Queue.open(path, part)
        queue.refresh()
        return queue


def edited(words: Words, queue: Queue, at: Place, fields: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(JSON Pointer -> new value, what is wrong with them) out of the editor's texts."""
    item = queue.items[at.row]
    new: dict[str, Any] = {}
    wrong: list[str] = []
    row = item.reviewed.row
    for place, text in fields.items():
        old = value_at(item.reviewed.row, place)
        if place not in queue.review.fields or old is MISSING:
            continue
        value: Any = text
        if not isinstance(old, str):
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                where = {"line": error.lineno, "column": error.colno, "why": error.msg}
                wrong.append(words("review.json_bad", place=name_of(place), **where))
                continue
        row = with_value(row, place, value)
        new.update(changes(old, value, place))
    if not wrong and new and queue.schema is not None:
        wrong = schema_errors(queue.schema, answer_of(item.made, row))
    return new, wrong


def check_author(author: str) -> None:
    """Raises:
    Refusal: nobody is named.
    """
    if not author:
        raise Refusal("review.no_author", "author")
