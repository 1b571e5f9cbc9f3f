"""Long conversations cut into parts of whole rounds, each within the context; no round is lost in silence.

FastChat's split_one_sample drops the last round whenever it opens a new part, and leaves an empty part before a round
that is too long. Here the parts put together are the input's rounds, less those reported as too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llmforge.data.example import RowRef, RowReport
from llmforge.datagen.chats import Chat
from llmforge.datagen.row_files import Row
from llmforge.datagen.step_keys import SplitConfig

Count = Callable[[str], int]  # a text's length in tokens


def split_rows(
    rows: Iterable[tuple[RowRef, Row]], count: Count, config: SplitConfig, report: RowReport
) -> tuple[list[Row], int]:
    """Cut each row's conversation; returns the parts in order, and how many rounds were too long.

    Parts are called `<id>_<first round>`, rounds counting from 0. A conversation that fits keeps its id. A system text
    and the tools stand in every part and count in each. A round that is longer than a part may be is left out and
    named; the next part begins after it, so that no part hides a gap.
    """
    parts: list[Row] = []
    left_out = 0
    for source, row in rows:
        try:
            chat = Chat.of(row)
        except ValueError as reason:
            report.reject(source, str(reason))
            continue
        made, too_long = split_chat(chat, count, config)
        left_out += len(too_long)
        for number in too_long:
            report.fix(source, f"round {number} is longer than {config.max_tokens}; left out")
        if not made:
            report.reject(source, "every round is too long" if too_long else "no rounds")
            continue
        report.rows_out += 1
        whole = len(made) == 1 and not too_long
        name = row.get("id", source.row)
        parts += [row] if whole else [chat.with_turns(turns, id=f"{name}_{start}") for start, turns in made]
    report.notes.append(f"{len(parts)} parts; {left_out} rounds left out")
    return parts, left_out


def split_chat(chat: Chat, count: Count, config: SplitConfig) -> tuple[list[tuple[int, list[Any]]], list[int]]:
    """(first round, turns) of each part, and the rounds that are too long for any."""
    system, rounds = chat.rounds()
    tools = chat.row.get("tools")
    fixed = sum(count(turn.text) + config.overhead for turn in system)
    fixed += count(tools if isinstance(tools, str) else str(tools)) + config.overhead if tools else 0
    parts: list[tuple[int, list[Any]]] = []
    too_long = []
    used = 0
    open_part = False
    for number, turns in enumerate(rounds):
        length = sum(count(turn.text) + config.overhead for turn in turns)
        if fixed + length > config.max_tokens:
            too_long.append(number)
            open_part = False
        elif open_part and used + length <= config.max_tokens:
            parts[-1][1].extend(turns)
            used += length
        else:
            parts.append((number, [*system, *turns]))
            used, open_part = fixed + length, True
    return parts, too_long
