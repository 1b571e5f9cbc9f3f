"""The format of rows nobody described: bare files, and entries whose rows spell their messages in another common way.

What was recognised is said in a note, with the entry that would say the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from llmforge.data.entry import Columns, DatasetEntry
from llmforge.data.formats.row import PROMPT_STAGES, RANKING_STAGES
from llmforge.errors import RecipeError

CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("instruction", "prompt", "question", "query", "input")
QUERIES = ("input", "question", "query")  # beside an instruction
REPLIES = ("output", "response", "answer", "completion", "reply", "target")
SCORED = ("replies", "responses", "answers", "completions")  # beside scores
OPTIONAL = ("system", "tools", "history", "images", "videos", "audios")


def recognise(entry: DatasetEntry, rows: Sequence[Any], stage: str) -> tuple[DatasetEntry, list[str]]:
    """The entry completed from its first rows, and notes on what was taken for what.

    Raises:
        RecipeError: a bare file whose columns say nothing; names them.
    """
    tables = [row for row in rows if isinstance(row, Mapping)]
    columns = list(dict.fromkeys(key for row in tables for key in row))
    if not columns:
        return entry, []
    if entry.inferred:
        found = _bare(entry, tables, columns, stage)
        read = asdict(found.columns).values()
        aside = [name for name in columns if name not in read and found.formatting != "text"]
        return found, [
            f"{entry.where}: read as {_as_json(found)}" + (f"; left aside: {', '.join(aside)}" if aside else "")
        ]
    found = _messages_form(entry, tables, columns)
    undescribed = entry.formatting == "alpaca" and "prompt" not in entry.named and entry.columns.prompt not in columns
    if stage == "pt" and undescribed and "text" in columns:
        found = replace(found, formatting="text")
    if found == entry:
        return entry, []
    return found, [f"dataset {entry.name!r}: its rows look different from the entry; read as {_as_json(found)}"]


def _bare(entry: DatasetEntry, rows: list[Mapping[str, Any]], columns: list[str], stage: str) -> DatasetEntry:
    optional = {name: name for name in OPTIONAL if name in columns}
    pair = {"chosen": "chosen", "rejected": "rejected"} if {"chosen", "rejected"} <= set(columns) else {}
    scored = _first(SCORED, columns)
    if not pair and scored and "scores" in columns:
        pair = {"replies": scored, "scores": "scores"}
    if stage not in RANKING_STAGES and _first(REPLIES, columns):
        pair = {}
    verdict = {"kto_tag": _first(("kto_tag", "label"), columns)} if stage == "kto" else {}
    conversation = next((name for name in CONVERSATIONS if name in columns and _first_message(rows, name)), None)
    if conversation:
        mapping = Columns(**{"messages": conversation, **optional, **pair, **verdict})
        formatting = "sharegpt" if "from" in (_first_message(rows, conversation) or {}) else "openai"
        return replace(entry, formatting=formatting, columns=mapping, ranking=bool(pair), inferred=False)
    if stage == "pt" and "text" in columns:
        return replace(entry, formatting="text", inferred=False)
    prompt, reply = _first(PROMPTS, columns), _first(REPLIES, columns)
    if prompt is None or (reply is None and not pair and stage not in PROMPT_STAGES):
        raise RecipeError(
            f"{entry.where}: cannot tell which columns to read at stage {stage}; it has {', '.join(columns)}. "
            f"Describe it in dataset_info.json, or inline: "
            f'{{"file_name": "{entry.name}", "columns": {{"prompt": "...", "response": "..."}}}}'
        )
    query = _first(QUERIES, columns) if prompt == "instruction" else None
    mapping = Columns(**{"prompt": prompt, "query": query, "response": reply, **optional, **pair, **verdict})
    return replace(entry, formatting="alpaca", columns=mapping, ranking=bool(pair), inferred=False)


def _messages_form(entry: DatasetEntry, rows: list[Mapping[str, Any]], columns: list[str]) -> DatasetEntry:
    """The column `messages` where the entry names none, and ChatGLM3's role/content keys under sharegpt."""
    if entry.formatting not in ("sharegpt", "openai"):
        return entry
    name = entry.columns.messages
    if "messages" not in entry.named and name not in columns and "messages" in columns:
        entry = replace(entry, columns=replace(entry.columns, messages=(name := "messages")))
    message = _first_message(rows, name) if name else None
    own_keys = {"role_tag", "content_tag"} & entry.named
    if message and entry.formatting == "sharegpt" and not own_keys and "role" in message and "from" not in message:
        entry = replace(entry, formatting="openai")
    return entry


def _first_message(rows: list[Mapping[str, Any]], column: str) -> Mapping[str, Any] | None:
    for row in rows:
        value = row.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return value[0]
    return None


def _first(names: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _as_json(entry: DatasetEntry) -> str:
    """The entry as one would write it."""
    default = asdict(Columns())
    columns = {name: value for name, value in asdict(entry.columns).items() if value != default[name]}
    shown: dict[str, Any] = {"formatting": entry.formatting}
    if entry.ranking:
        shown["ranking"] = True
    if columns and entry.formatting != "text":
        shown["columns"] = columns
    return json.dumps(shown, ensure_ascii=False)
