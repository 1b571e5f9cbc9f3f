"""Uploaded files: taken into a quarantine folder under a clean name, up to a size, and never run or overwritten."""

from __future__ import annotations

import re
import shutil
import unicodedata
import uuid
from pathlib import Path

from llmforge.webui.board import Board
from llmforge.webui.refusal import Refusal

MAX_BYTES = 200 << 20  # of one file; gradio cuts the upload off at the same size
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl")


def clean_name(name: str) -> str:
    """A file name of letters (any script), digits, dots, dashes and underscores; no folder, no leading dot.

    Raises:
        Refusal: nothing is left of it.
    """
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    name = re.sub(r"[^\w.-]+", "_", name).strip("._-")[:100]
    if not name:
        raise Refusal("common.upload_name")
    return name


def take_upload(board: Board, path: str, suffixes: tuple[str, ...] = TABLE_SUFFIXES) -> Path:
    """Move what the browser sent from gradio's temporary folder into the quarantine; its place there.

    Raises:
        Refusal: another suffix, or too large.
    """
    sent = Path(path)
    name = clean_name(sent.name)
    if sent.suffix.lower() not in suffixes:
        sent.unlink(missing_ok=True)
        raise Refusal("common.upload_kind", name=name, kinds=", ".join(suffixes))
    if (size := sent.stat().st_size) > MAX_BYTES:
        sent.unlink(missing_ok=True)
        raise Refusal("common.upload_large", name=name, size=size >> 20, most=MAX_BYTES >> 20)
    folder = board.uploads / uuid.uuid4().hex
    folder.mkdir(parents=True)
    kept = folder / name
    shutil.move(sent, kept)
    kept.chmod(0o600)
    return kept
