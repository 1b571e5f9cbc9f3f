"""A file somebody brings: what is in it, which column is which part of a row, and its entry in dataset_info.json.

The file itself is never changed. An upload is copied into data/uploads/ when it is added; a path stays where it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from llmforge.data.entry import DatasetEntry, read_entry
from llmforge.data.example import Example, RowReport
from llmforge.data.files import data_files, read_rows
from llmforge.data.inspect import natural_stage
from llmforge.data.read import HEAD, iter_examples
from llmforge.data.recognise import recognise
from llmforge.data.registry import INFO_NAME
from llmforge.datagen.register import add_entries, file_name_in
from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.refusal import Refusal

# What a reader can say a file holds, and the columns that belong to it; the first ones must be there.
KINDS: dict[str, tuple[str, ...]] = {
    "questions": ("prompt", "response", "query", "system", "history"),
    "chats": ("messages", "system", "tools"),
    "pairs": ("prompt", "chosen", "rejected", "query", "system"),
    "verdicts": ("prompt", "response", "kto_tag", "query", "system"),
    "texts": ("prompt",),
}
NEEDED = {
    "questions": ("prompt", "response"),
    "chats": ("messages",),
    "pairs": ("prompt", "chosen", "rejected"),
    "verdicts": ("prompt", "response", "kto_tag"),
    "texts": ("prompt",),
}
PARTS = tuple(dict.fromkeys(name for names in KINDS.values() for name in names))
SHOWN = 5  # rows of a preview


@dataclass(frozen=True)
class Meaning:
    """What a file is said to hold: its kind, and the column of each part."""

    kind: str
    columns: dict[str, str] = field(default_factory=dict)  # part -> column

    def as_entry(self, file_name: str, first: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of dataset_info.json; every column is named, so that none is read by its default.

        Args:
            first: a row, whose messages say whether they are spelled from/value or role/content.

        Raises:
            Refusal: a column that this kind needs is not named, or one stands for two parts.
        """
        if wrong := self.wrong():
            raise wrong[0]
        named = self._named
        unused = {part: None for part in ("query",) if part in KINDS[self.kind] and part not in named}
        entry: dict[str, Any] = {"file_name": file_name, "columns": {**named, **unused}}
        if self.kind == "chats":
            entry["formatting"] = _spelling(first, named["messages"])
        elif self.kind == "texts":
            entry["formatting"] = "text"
        elif self.kind == "pairs":
            entry["ranking"] = True
        return entry

    def wrong(self) -> list[Refusal]:
        """What is wrong with the columns: each that is needed and not named, each that stands for two parts."""
        missing = [Refusal("data.choose_column", part) for part in NEEDED[self.kind] if part not in self._named]
        named = list(self._named.items())
        twice = [
            Refusal("data.column_twice", part, column=column)
            for number, (part, column) in enumerate(named)
            if column in [before for _, before in named[:number]]
        ]
        return missing + twice

    @property
    def _named(self) -> dict[str, str]:
        return {part: column for part in KINDS[self.kind] if (column := self.columns.get(part))}


@dataclass(frozen=True)
class Source:
    """A file looked at: its columns, its first rows as they are, and what they look like."""

    path: Path
    columns: list[str]
    head: list[dict[str, Any]]
    guess: Meaning


def look(path: Path) -> Source:
    """Read the first rows of a file.

    Raises:
        RecipeError: it cannot be read, or its rows are no objects.
    """
    first = data_files(path)[0]
    head = [row for _, row in islice(read_rows(first, lambda text: None), HEAD)]
    rows = [row for row in head if isinstance(row, dict)]
    if not rows:
        raise Refusal("data.no_columns" if head else "data.file_empty", name=path.name)
    columns = list(dict.fromkeys(str(key) for row in rows for key in row if key))
    return Source(path, columns, rows, _guess(path, rows, columns))


def preview(entry: Mapping[str, Any], folder: Path, count: int = SHOWN) -> tuple[list[Example], RowReport]:
    """The first rows as examples, and what happened to the rows on the way.

    Raises:
        RecipeError: the entry is wrong, or no row can be read.
    """
    checked = read_entry("preview", entry, folder)
    report = RowReport("preview")
    return list(islice(iter_examples(checked, report, stage=natural_stage(checked)), count)), report


def add(board: Board, name: str, source: Source, meaning: Meaning) -> tuple[str, dict[str, Any]]:
    """Describe the file in the project's dataset_info.json; an uploaded one is copied out of the quarantine first.

    Raises:
        RecipeError: no name or a taken one, a column that is missing, or a file whose rows cannot be read so.
    """
    name = name.strip()
    if not name or any(c in name for c in ",[]{}\"'\n"):
        raise Refusal("data.bad_name", "name")
    registry = board.data / INFO_NAME
    path = source.path
    meaning.as_entry(path.name, source.head[0])  # what is wrong with the columns is said before anything is copied
    if path.is_relative_to(board.uploads):
        path = _kept(board, path)
    entry = meaning.as_entry(file_name_in(registry, path), source.head[0])
    preview(entry, board.data, 1)
    add_entries(registry, {name: entry})
    return name, entry


def _kept(board: Board, upload: Path) -> Path:
    """A copy of an upload under its own name; a file of that name which is there already stays."""
    folder = board.data / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    place, number = folder / upload.name, 2
    while place.exists():
        if place.read_bytes() == upload.read_bytes():
            return place
        place, number = folder / f"{upload.stem}_{number}{upload.suffix}", number + 1
    shutil.copyfile(upload, place)
    return place


def _guess(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> Meaning:
    """What the rows look like; the closest kind with no columns where they say nothing."""
    bare = DatasetEntry(path.stem, path, inferred=True)
    for stage in ("kto", "sft", "dpo", "pt"):
        try:
            entry, _ = recognise(bare, rows, stage)
        except RecipeError:
            continue
        meaning = meaning_of(entry)
        if meaning and not (stage == "kto" and meaning.kind != "verdicts"):
            known = {part: column for part, column in meaning.columns.items() if column in columns}
            if all(part in known for part in NEEDED[meaning.kind]):
                return Meaning(meaning.kind, known)
    return Meaning("questions")


def meaning_of(entry: DatasetEntry) -> Meaning | None:
    """An entry as the form shows it; None for what the form has no words for."""
    found = {part: column for part in PARTS if (column := getattr(entry.columns, part))}
    if entry.formatting in ("sharegpt", "openai"):
        kind = "chats" if not entry.ranking else None
    elif entry.formatting == "text":
        kind, found = "texts", {"prompt": "text"}
    else:
        kind = "pairs" if entry.ranking else "verdicts" if entry.columns.kto_tag else "questions"
    return Meaning(kind, {part: found[part] for part in KINDS[kind] if part in found}) if kind else None


def _spelling(first: Mapping[str, Any] | None, column: str) -> str:
    """sharegpt for from/value, openai for role/content."""
    messages = (first or {}).get(column)
    is_role = isinstance(messages, list) and messages and isinstance(messages[0], dict) and "role" in messages[0]
    return "openai" if is_role or (isinstance(messages, str) and '"role"' in messages) else "sharegpt"
