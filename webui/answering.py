"""Answers as they are written: all columns at once, until they are over or the reader stops them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from llmforge.errors import ForgeError
from llmforge.webui import chat_client
from llmforge.webui.chat_client import Target
from llmforge.webui.talk import Talk

EVERY_S = 0.1  # how often what was written since is shown, and Stop is looked at
_stops: dict[str, asyncio.Event] = {}  # session -> told to stop


async def answer(at: Talk, session: str) -> AsyncIterator[None]:
    """Stream all columns at once until they are over or the reader stops them; yields when there is something new."""
    told = _stops[session] = asyncio.Event()
    asked = [(column, column.reply) for column in at.columns if column.reply and not column.reply.is_over]
    tasks = [
        asyncio.create_task(chat_client.fill(reply, column.target, at.drawn.body(column.target.model, column.messages)))
        for column, reply in asked
    ]
    try:
        while not all(task.done() for task in tasks) and not told.is_set():
            before = at.written()
            await asyncio.wait(tasks, timeout=EVERY_S)
            if at.written() != before:
                yield None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for column, _ in asked:
            column.close()
        if _stops.get(session) is told:
            del _stops[session]


async def judge(at: Talk, target: Target) -> None:
    """The reward of every answer; a reward model that fails says so at the answer."""
    for column in at.columns:
        if column.reply and column.reply.text:
            try:
                column.reply.score = await chat_client.score(target, column.messages)
            except ForgeError as error:
                column.reply.error = error


def stop(session: str) -> None:
    """End what is being written for a reader; nothing where nothing is."""
    if event := _stops.get(session):
        event.set()
