"""The folder of a data set at work: ok/, rejected/ and raw/, one file per row, written from the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.datagen.ledger import Entry, RowHistory
from llmforge.errors import RecipeError, RunError
from llmforge.runs import atomic_write

RAW_KEYS = ("text", "finish_reason", "cause", "detail", "spent", "teacher")


@dataclass(frozen=True)
class Work:
    """Names of the files of a data set at work (docs/architecture.md)."""

    path: Path

    @property
    def ok(self) -> Path:
        return self.path / "ok"

    @property
    def rejected(self) -> Path:
        return self.path / "rejected"

    @property
    def raw(self) -> Path:
        return self.path / "raw"

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def make(self) -> None:
        """Make the folders.

        Raises:
            RecipeError: they cannot be made.
        """
        try:
            for folder in (self.ok, self.rejected, self.raw):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"store.dir: {self.path} cannot be made: {error.strerror}") from None

    def records(self) -> Iterator[dict[str, Any]]:
        """The accepted rows, by index.

        Raises:
            RecipeError: a file in ok/ that is no record.
        """
        found = []
        for path in self.ok.glob("*.json"):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                found.append((record["index"], record["id"], record))
            except (ValueError, KeyError, TypeError):
                raise RecipeError(f"{path}: no accepted row (a JSON object with id and index)") from None
        for _, _, record in sorted(found, key=lambda item: item[:2]):
            yield record

    def write_row(self, id: str, row: RowHistory) -> None:
        """The files of a decided row.

        Raises:
            RunError: the disk is full; the ledger has the row, and the next run writes its files.
        """
        assert row.end is not None
        accepted = row.end["cause"] is None
        home, other = (self.ok, self.rejected) if accepted else (self.rejected, self.ok)
        record = row.end["record"]
        if not accepted:
            record = {**record, **{key: row.end[key] for key in ("cause", "detail")}}
            record["replies"] = [reply["text"] for reply in row.replies]
        try:
            (other / f"{id}.json").unlink(missing_ok=True)
            self.write_raw(id, row)
            _write(home / f"{id}.json", record)
        except OSError as error:
            raise RunError(f"{home / id}.json cannot be written ({error.strerror}); the ledger has the row") from None

    def write_raw(self, id: str, row: RowHistory) -> None:
        """Every answer to a row as it came."""
        attempts = [{key: reply.get(key) for key in RAW_KEYS} for reply in row.replies]
        if attempts:
            _write(self.raw / f"{id}.json", {"id": id, "attempts": attempts})

    def restore(self, rows: dict[str, RowHistory]) -> int:
        """Write files that a kill left unwritten; returns how many rows that were."""
        there = {folder: {path.stem for path in folder.glob("*.json")} for folder in (self.ok, self.rejected)}
        missing = [
            (id, row)
            for id, row in rows.items()
            if row.end and id not in there[self.ok if row.end["cause"] is None else self.rejected]
        ]
        for id, row in missing:
            self.write_row(id, row)
        return len(missing)


def end_entry(record: dict[str, Any], cause: str | None = None, detail: str = "") -> Entry:
    """The ledger's last line of a row: accepted, or rejected with its cause."""
    return {"t": "end", "id": record["id"], "cause": cause, "detail": detail, "record": record}


def _write(path: Path, value: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n", durable=False)
