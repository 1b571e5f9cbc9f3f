"""Review of rows by people: which are to be looked at, what was decided, and what follows from it.

State lives in files alone (patches.jsonl), so a terminal, a spreadsheet and the board can work on the same review.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmforge.data.example import RowReport
from llmforge.datagen.agreement import cohen_kappa, error_rate
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.patches import (
    DECIDED,
    PATCHES,
    STATES,
    Change,
    Patch,
    Reviewed,
    State,
    append_patches,
    apply_patches,
    base_hash,
    read_patches,
)
from llmforge.datagen.pointer import pointer_of, value_at
from llmforge.datagen.row_files import Row, read_files
from llmforge.datagen.work import Work
from llmforge.errors import RecipeError, nearest
from llmforge.metrics.json_text import MISSING, canonical_json
from llmforge.runs import sha256_file

TRAINING_ROW = ("instruction", "input", "output")


@dataclass(frozen=True)
class Item:
    """One row under review: as it was made, and as it stands after its patches."""

    id: str
    made: Row
    reviewed: Reviewed
    sampled: bool

    @property
    def state(self) -> State:
        return self.reviewed.state


class Review:
    """The rows of a data set's folder, or of a file, with their decisions in `folder`/patches.jsonl."""

    def __init__(self, folder: Path, rows: Sequence[tuple[str, Row]], recipe: DatasetRecipe):
        self.folder, self.config, self.seed = folder, recipe.calibrate, recipe.seed
        self.rows = dict(rows)
        if len(self.rows) < len(rows):
            twice = next(id for id, count in Counter(id for id, _ in rows).items() if count > 1)
            raise RecipeError(f"review: the id {twice!r} stands twice")
        self.fields = self._fields()

    @classmethod
    def open(cls, recipe: DatasetRecipe, files: Sequence[Path] = ()) -> Review:
        """The review of a recipe's accepted rows, or of one data file, whose decisions lie in FILE.review/.

        Raises:
            RecipeError: nothing to review, or a field of `calibrate.fields` that no row has.
        """
        if len(files) > 1:
            raise RecipeError("review: one data file at a time, or a recipe")
        if files:
            column = recipe.calibrate.id
            report = RowReport("review")
            rows = [(str(row.get(column) or source.row), row) for source, row in read_files(files, report)]
            if report.rejected:
                raise RecipeError(f"{report.rejected[0][0]}: {report.rejected[0][1]}")
            return cls(files[0].with_name(f"{files[0].name}.review"), rows, recipe)
        records = [(record["id"], record) for record in Work(recipe.folder).records()]
        if not records:
            raise RecipeError(
                f"review: {recipe.folder / 'ok'} holds no accepted rows; run `forge-cli data generate` first"
            )
        return cls(recipe.folder, records, recipe)

    def reviewer(self) -> str:
        """The name decisions are signed with.

        Raises:
            RecipeError: the environment says none.
        """
        name = os.environ.get(self.config.reviewer_env, "").strip()
        if not name:
            raise RecipeError(f"review: who decides? Set ${self.config.reviewer_env}, or say --author NAME")
        return name

    @cached_property
    def order(self) -> list[str]:
        """Ids in the order they are reviewed. A part of the rows is drawn by a hash of seed and id, and shown in that
        order, so that the rows decided so far are a random sample at any time; all rows keep their own order."""
        if self.config.sample >= 1:
            return list(self.rows)
        drawn = sorted(self.rows, key=lambda id: hashlib.sha256(f"{self.seed}\0{id}".encode(errors="replace")).digest())
        return drawn[: math.ceil(self.config.sample * len(drawn))]

    def items(self) -> list[Item]:
        """All rows, those of the sample first in their order."""
        patches: dict[str, list[Patch]] = {}
        for patch in read_patches(self.folder):
            patches.setdefault(patch.id, []).append(patch)
        sampled = set(self.order)
        ids = [*self.order, *(id for id in self.rows if id not in sampled)]
        return [Item(id, self.rows[id], apply_patches(self.rows[id], patches.get(id, [])), id in sampled) for id in ids]

    def item(self, id: str) -> Item:
        """One row as it stands.

        Raises:
            RecipeError: no row has this id.
        """
        if id not in self.rows:
            raise RecipeError(f"review: no row {id!r}.{nearest(id, self.rows)}")
        mine = [patch for patch in read_patches(self.folder) if patch.id == id]
        return Item(id, self.rows[id], apply_patches(self.rows[id], mine), id in set(self.order))

    def decision(
        self, item: Item, state: State, author: str, new: dict[str, Any] | None = None, note: str = ""
    ) -> Patch:
        """A decision about a row as it stands; values that do not differ are no edits.

        Args:
            new: field (dotted or JSON Pointer) -> new value; with any, the state is "edited".

        Raises:
            RecipeError: an unknown state or field, or an edit without a new value.
        """
        if state not in STATES:
            raise RecipeError(f"review: state {state!r}.{nearest(state, STATES)} Known: {', '.join(STATES)}")
        changes: dict[str, Change] = {}
        for field, value in (new or {}).items():
            for place in self._places(item, pointer_of(field)):
                old = value_at(item.reviewed.row, place)
                if old is MISSING:
                    raise RecipeError(f"review: row {item.id} has no field {field!r}")
                if canonical_json(old) != canonical_json(value):
                    changes[place] = Change(old, value)
        if changes and state in ("edited", "accepted"):
            state = "edited"
        elif changes:
            raise RecipeError(f"review: row {item.id}: an edited row cannot be {state}")
        elif state == "edited":
            state = "accepted" if item.reviewed.row is item.made else "edited"
        return Patch(item.id, state, author, base_hash(item.made), fields=changes, note=note)

    def decide(self, id: str, state: State, author: str, new: dict[str, Any] | None = None, note: str = "") -> Item:
        """Decide about one row and keep the decision; returns the row as it stands then."""
        append_patches(self.folder, [self.decision(self.item(id), state, author, new, note)])
        return self.item(id)

    def summary(self) -> dict[str, Any]:
        """Counts of states, the error rate in the sample, agreement of reviewers, and decisions that fit no more."""
        items = self.items()
        sample = [item for item in items if item.sampled]
        decided = [item for item in sample if item.state in DECIDED]
        counts = Counter(item.state for item in items)
        summary: dict[str, Any] = {
            "rows": len(items),
            "sample": len(sample),
            "states": {state: counts[state] for state in STATES},
            "stale": [{"id": item.id, "why": item.reviewed.stale} for item in items if item.reviewed.stale],
        }
        unknown = sorted({patch.id for patch in read_patches(self.folder)} - self.rows.keys())
        if unknown:
            summary["decisions_without_row"] = unknown
        if decided:
            bad = sum(item.state != "accepted" for item in decided)
            summary["error_rate"] = error_rate(len(decided), bad)._asdict()
        summary["agreement"] = list(_agreements(items))
        return summary

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps of the review: its summary, and the hash of the decisions."""
        path = self.folder / PATCHES
        return {**self.summary(), "patches_sha256": sha256_file(path) if path.is_file() else None}

    def _fields(self) -> list[str]:
        """JSON Pointers of what is shown and edited."""
        first = next(iter(self.rows.values()), {})
        if not self.config.fields:
            there = [name for name in TRAINING_ROW if name in first]
            return [pointer_of(name) for name in there or first if name != self.config.id]
        for name in self.config.fields:
            if first and all(value_at(row, pointer_of(name)) is MISSING for row in self.rows.values()):
                raise RecipeError(
                    f"calibrate.fields: no row has {name!r}.{nearest(name, first)} Known: {', '.join(first)}"
                )
        return [pointer_of(name) for name in self.config.fields]

    def _places(self, item: Item, place: str) -> Iterable[str]:
        """Where an edit goes: one of the teacher's answer goes into the training row made of it, too."""
        if not (place == "/out" or place.startswith("/out/")) or "output" not in item.made:
            return [place]
        if canonical_json(item.made["out"]) != canonical_json(item.made["output"]):
            raise RecipeError(f"review: {place} is not what is learned; edit the same place in output")
        return [place, "/output" + place.removeprefix("/out")]


def _agreements(items: Sequence[Item]) -> Iterable[dict[str, Any]]:
    """Cohen's kappa for each two reviewers with rows in common."""
    authors = sorted({author for item in items for author in item.reviewed.by_author})
    for first, second in itertools.combinations(authors, 2):
        both = [
            (item.reviewed.by_author[first], item.reviewed.by_author[second])
            for item in items
            if all(item.reviewed.by_author.get(author) in DECIDED for author in (first, second))
        ]
        if both:
            differ = sum(a != b for a, b in both)
            result = cohen_kappa(*zip(*both, strict=True))
            yield {"reviewers": [first, second], **result._asdict(), "differ": differ}
