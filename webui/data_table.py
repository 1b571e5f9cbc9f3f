"""The data sets of a project, and what their last check said; checks are remembered in the board's own folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmforge.config.schema import ModelConfig
from llmforge.data.entry import DatasetEntry
from llmforge.data.inspect import natural_stage
from llmforge.data.registry import INFO_NAME, load_registry
from llmforge.model.command import models
from llmforge.runs import atomic_write, list_runs, read_manifest, sha256_file
from llmforge.webui.board import Board
from llmforge.webui.words import Words

CHECKS = "checks.json"


def entries(board: Board) -> dict[str, DatasetEntry]:
    """The registry of the project; {} where there is none yet.

    Raises:
        RecipeError: entries that are wrong.
    """
    return load_registry(board.data) if (board.data / INFO_NAME).is_file() else {}


def lines(board: Board, words: Words) -> list[dict[str, str]]:
    """The table's lines, in the order of the registry."""
    checks = _checks(board)
    found = []
    for name, entry in entries(board).items():
        known = checks.get(name, {})
        fresh = known.get("stamp") == stamp(entry)
        found.append(
            {
                "name": name,
                "kind": words(f"data.kind_{kind_of_entry(entry)}"),
                "rows": f"{known['rows']:,}" if fresh else "–",
                "format": f"{entry.hub[0]}:{entry.hub[1]}" if entry.hub else _suffix(entry.path),
                "hash": known.get("sha256", "")[:8] if fresh else "",
                "checked": _said(words, known, fresh),
            }
        )
    return found


def kind_of_entry(entry: DatasetEntry) -> str:
    """What the rows of an entry hold, as the form for new files calls it."""
    by_stage = {"dpo": "pairs", "kto": "verdicts", "pt": "texts", "prompt": "prompts"}
    chat = "chats" if entry.formatting in ("sharegpt", "openai") else "questions"
    return by_stage.get(natural_stage(entry), chat)


def remember(board: Board, entry: DatasetEntry, rows: int, bad: int) -> None:
    """Keep what a check of the whole file found."""
    board.own.mkdir(parents=True, exist_ok=True)
    whole = sha256_file(entry.path) if entry.path and entry.path.is_file() else ""
    with FileLock(board.own / f".{CHECKS}.lock"):
        checks = _checks(board)
        checks[entry.name] = {
            "stamp": stamp(entry), "sha256": whole, "rows": rows, "bad": bad, "time": time.time()
        }  # fmt: skip
        atomic_write(board.own / CHECKS, json.dumps(checks, ensure_ascii=False, indent=1))


def stamp(entry: DatasetEntry) -> str:
    """Changes when the file or its entry does."""
    if entry.path is None or not entry.path.exists():
        return ""
    about = entry.path.stat()
    return f"{about.st_size} {about.st_mtime_ns} {entry.formatting} {entry.columns}"


def known_models(board: Board) -> list[str]:
    """Models whose tokenizer is on this machine: bases of the project's runs, then what is in the caches."""
    used = [(read_manifest(run.path) or {}).get("base_model") for run in list_runs(board.runs)]
    return list(dict.fromkeys([*(name for name in used if name), *(model.name for model in models(ModelConfig()))]))


def _said(words: Words, known: dict[str, Any], fresh: bool) -> str:
    if not known:
        return words("common.never")
    if not fresh:
        return words("data.changed_since")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(known["time"]))
    return words("data.checked_bad", when=when, n=known["bad"]) if known["bad"] else words("data.checked_ok", when=when)


def _suffix(path: Path | None) -> str:
    return path.suffix[1:] if path and path.suffix else "–"


def _checks(board: Board) -> dict[str, Any]:
    path = board.own / CHECKS
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}  # it only remembers; the next check writes it anew
    return value if isinstance(value, dict) else {}
