"""patches.jsonl: what reviewers decided about rows, one line a decision, only ever appended to.

Rows themselves are never changed: a patch names the fields it edits with their old and new values and the hash of the
row it was made for, so that it can be applied again after the rows were made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from llmforge.datagen.pointer import value_at, with_value
from llmforge.errors import RecipeError, RunError, nearest
from llmforge.metrics.json_text import canonical_json

PATCHES = "patches.jsonl"
State = Literal["pending", "accepted", "edited", "rejected", "skipped"]
STATES: tuple[State, ...] = ("pending", "accepted", "edited", "rejected", "skipped")
DECIDED = ("accepted", "edited", "rejected")
VOLATILE = ("repaired", "messages")  # of a record, what says how it was made and not what it is


@dataclass(frozen=True)
class Change:
    """One edited field."""

    old: Any
    new: Any


@dataclass(frozen=True)
class Patch:
    """One decision of one reviewer; `time` is UTC, `base` the hash of the row as it was made."""

    id: str
    state: State
    author: str
    base: str
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    fields: dict[str, Change] = field(default_factory=dict)  # JSON Pointer -> change
    note: str = ""


@dataclass(frozen=True)
class Reviewed:
    """A row with its patches applied; `stale` says which decision did not fit any more."""

    row: dict[str, Any]
    state: State = "pending"
    author: str = ""
    note: str = ""
    stale: str = ""
    by_author: dict[str, State] = field(default_factory=dict)


def base_hash(row: dict[str, Any]) -> str:
    """What a patch remembers of the row it was made for."""
    kept = {key: value for key, value in row.items() if key not in VOLATILE}
    return hashlib.sha256(canonical_json(kept).encode(errors="replace")).hexdigest()[:32]


def append_patches(folder: Path, patches: Sequence[Patch]) -> None:
    """Write decisions to the end of patches.jsonl, all of them or none; reviewers may write at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PATCHES
    lines = "".join(json.dumps(asdict(patch), ensure_ascii=False) + "\n" for patch in patches).encode()
    with FileLock(folder / f".{PATCHES}.lock"), open(path, "ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1  # behind it a power cut left half a line, which was never acknowledged
        size = file.truncate(whole)
        try:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise RunError(f"{path} cannot be written: {error.strerror}; the decision is not kept") from None


def read_patches(folder: Path) -> list[Patch]:
    """All decisions in the order they were made; [] when there are none yet. A half line at the end is left out.

    Raises:
        RecipeError: a line that is no decision; names it.
    """
    path = folder / PATCHES
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_patch(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number == len(lines):
                continue
            raise RecipeError(f"{path}: line {number}: no decision ({error})") from None
    return found


def _patch(value: dict[str, Any]) -> Patch:
    if value["state"] not in STATES:
        raise ValueError(f"state {value['state']!r}.{nearest(value['state'], STATES)} Known: {', '.join(STATES)}")
    changes = {place: Change(change["old"], change["new"]) for place, change in value.get("fields", {}).items()}
    texts = {key: str(value[key]) for key in ("id", "author", "base", "time")}
    return Patch(**texts, state=value["state"], fields=changes, note=str(value.get("note", "")))


def apply_patches(row: dict[str, Any], patches: Sequence[Patch]) -> Reviewed:
    """A row after its decisions, the last one counting.

    A decision made for the same row holds. One made for an earlier version holds when it is an edit whose old values
    are still there; any other sends the row back to pending, and `stale` says so.
    """
    if not patches:
        return Reviewed(row)
    base = base_hash(row)
    result = Reviewed(row)
    for patch in patches:
        states = {**result.by_author, patch.author: patch.state}
        if patch.state == "pending":
            result = Reviewed(row, by_author=states)
            continue
        edited, misfit = _edit(result.row, patch)
        if misfit or (patch.base != base and not patch.fields and patch.state != "skipped"):
            why = misfit or "the row was made anew since"
            stale = f"{patch.state} by {patch.author} at {patch.time}: {why}"
            result = Reviewed(row, stale=stale, by_author={**states, patch.author: "pending"})
            continue
        state: State = "edited" if patch.state == "accepted" and edited is not row else patch.state
        result = Reviewed(edited, state, patch.author, patch.note, by_author=states)
    return result


def _edit(row: dict[str, Any], patch: Patch) -> tuple[dict[str, Any], str]:
    """The row with the patch's new values, and what does not fit."""
    for place, change in patch.fields.items():
        now = value_at(row, place)
        if canonical_json_or_none(now) not in (canonical_json(change.old), canonical_json(change.new)):
            return row, f"{place} is no longer what was edited"
        if canonical_json(now) != canonical_json(change.new):
            row = with_value(row, place, change.new)
    return row, ""


def canonical_json_or_none(value: Any) -> str | None:
    """canonical_json of a value that may not be there."""
    try:
        return canonical_json(value)
    except TypeError:
        return None
