"""Encoded rows on disk, memory-mapped, found again by what they were made from; a stale copy cannot be found.

The key covers the text of every example, template, tokenizer, options and the encoder's version. So it does not matter
how rows were read, mixed or split: the same examples encode to the same copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from llmforge.data.encode import VERSION
from llmforge.data.example import EncodedSet, Example, RowReport
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.runs import atomic_dir, sha256_file

ARRAYS = ("input_ids", "labels", "offsets", "examples")
MIN_EXAMPLES = 2000  # fewer are encoded in about the time that writing and finding a copy takes
KEEP_DAYS = 30  # a copy nobody used for so long is removed


def cache_root(cache_dir: str | None = None) -> Path:
    """Where encoded copies lie: under `cache_dir`, else $FORGE_HOME, else ~/.cache/forge."""
    return Path(cache_dir or os.environ.get("FORGE_HOME") or "~/.cache/forge").expanduser().absolute() / "encoded"


def cache_key(examples: Sequence[Example], template: Template, tokenizer: Tokenizer, options: Mapping[str, Any]) -> str:
    """sha256 of all that decides the encoded rows."""
    digest = hashlib.sha256()
    for part in (VERSION, template.hash(), tokenizer.vocab_hash, tokenizer.bos_id, tokenizer.eos_id):
        digest.update(f"{part}\n".encode())
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):  # the vocabulary alone is not all
        if (tokenizer.folder / name).is_file():
            digest.update(f"{name} {sha256_file(tokenizer.folder / name)}\n".encode())
    digest.update(json.dumps(dict(options), sort_keys=True).encode())
    for example in examples:
        text = repr((example.messages, example.tools, example.chosen, example.rejected, example.label, example.text))
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def encoded_once(
    root: Path,
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    options: Mapping[str, Any],
    build: Callable[[], tuple[EncodedSet, RowReport]],
    *,
    overwrite: bool = False,
) -> tuple[EncodedSet, RowReport]:
    """The copy under `root` if there is one, else what `build` makes; ranks that ask at once build it once.

    `overwrite` builds anew and replaces the copy. Few examples are built without a copy, and so are those of a machine
    where `root` cannot be written; the report then says so.
    """
    if len(examples) < MIN_EXAMPLES:
        return build()
    folder = root / cache_key(examples, template, tokenizer, options)
    started = time.time()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{folder.name}.lock")
        lock.acquire()
    except OSError as error:
        return _without_copy(*build(), error)
    try:
        made_meanwhile = (folder / "report.json").is_file() and (folder / "report.json").stat().st_mtime > started
        found = _load(folder, examples) if made_meanwhile or not overwrite else None
        if found is not None:
            os.utime(folder)  # used today
            return found
        encoded, report = build()
        try:
            _remove_old(root)
            _save(folder, encoded, report, examples)
        except OSError as error:
            return _without_copy(encoded, report, error)
        return _load(folder, examples) or (encoded, report)
    finally:
        lock.release()


def _without_copy(encoded: EncodedSet, report: RowReport, error: OSError) -> tuple[EncodedSet, RowReport]:
    report.notes.append(f"no encoded copy was kept ({error})")
    return encoded, report


def _save(folder: Path, encoded: EncodedSet, report: RowReport, examples: Sequence[Example]) -> None:
    """Rows of the report are kept as positions, since the same text may come from another file next time."""
    position = {example.source: i for i, example in enumerate(examples)}
    told = {
        "name": report.name,
        "rows_in": report.rows_in,
        "rows_out": report.rows_out,
        "rejected": [(position[source], reason) for source, reason in report.rejected],
        "fixed": [(position[source], what) for source, what in report.fixed],
        "notes": report.notes,
    }
    with atomic_dir(folder) as temporary:
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(encoded, name))
        (temporary / "report.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def _load(folder: Path, examples: Sequence[Example]) -> tuple[EncodedSet, RowReport] | None:
    """The copy with this call's sources, or None when it is not there whole."""
    try:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS]
        told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    report = RowReport(told["name"], told["rows_in"], told["rows_out"], notes=told["notes"])
    report.rejected = [(examples[i].source, reason) for i, reason in told["rejected"]]
    report.fixed = [(examples[i].source, what) for i, what in told["fixed"]]
    return EncodedSet(*arrays), report


def _remove_old(root: Path) -> None:
    for folder in root.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEEP_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
            (root / f"{folder.name}.lock").unlink(missing_ok=True)
