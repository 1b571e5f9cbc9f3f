"""Rows under review as the page needs them: filtered, a window at a time, decided and taken back in a few milliseconds.

The decisions are those of datagen/review.py: patches.jsonl beside the rows is the truth, and a queue only remembers
what it read there, so a killed board loses nothing and a second reviewer's decisions are seen.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmforge.config.kind import recipe_kind
from llmforge.data.files import kind_of
from llmforge.data.plain_text import WORD
from llmforge.datagen.agreement import ErrorRate, error_rate
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.patches import (
    DECIDED,
    PATCHES,
    STATES,
    Patch,
    Reviewed,
    State,
    append_patches,
    apply_patches,
    read_patches,
)
from llmforge.datagen.pointer import value_at
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.review import Item, Review
from llmforge.datagen.row_files import texts_of
from llmforge.datagen.work import Work
from llmforge.errors import RecipeError
from llmforge.metrics.json_text import MISSING, canonical_json
from llmforge.webui.review_schema import answer_of, changes, schema_errors

WINDOW = 50  # rows of the list that are on the page
SIMILAR = 5
LEAST_ALIKE = 0.6
FILTERS = ("all", "pending", *STATES[1:], "stale", "invalid")


@dataclass
class Place:
    """Where one reader is: the filter, the row, the decisions that can be taken back, and how often a row was shown."""

    source: str = ""
    part: float = 1  # of the rows, drawn at random; 1: all of them
    filter: str = "all"
    search: str = ""
    row: str = ""
    done: list[tuple[str, Reviewed]] = field(default_factory=list)
    shown: int = 0


@dataclass
class Queue:
    """A review held in memory."""

    review: Review
    source: Path  # the file of rows, or the folder of a recipe's accepted ones
    schema: Mapping[str, Any] | None = None
    is_part: bool = False  # whether only a random part of the rows is reviewed
    items: dict[str, Item] = field(default_factory=dict)
    _patches: dict[str, list[Patch]] = field(default_factory=dict)
    _size: int = -1
    _texts: dict[str, str] = field(default_factory=dict)
    _bags: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    _invalid: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _begun: int = 0

    def __post_init__(self) -> None:
        self._begun = self.source.stat().st_mtime_ns

    @property
    def is_outdated(self) -> bool:
        """Whether there are other rows now than when it was opened."""
        return not self.source.exists() or self.source.stat().st_mtime_ns != self._begun

    @classmethod
    def open(cls, words: str | Path, part: float = 1) -> Queue:
        """The review of a recipe of `kind: dataset`, or of a data file.

        Args:
            part: of the rows, in 0..1; less than 1 draws so many at random, always the same ones.

        Raises:
            RecipeError: neither, or nothing to review.
        """
        path = Path(words)
        is_rows = kind_of(path) and not (path.suffix.lower() == ".json" and _is_recipe(path))
        if is_rows:
            return cls(Review.open(_drawing(DatasetRecipe(), part), [path]), path, None, part < 1)
        recipe = _drawing(load_dataset_recipe([str(path)], "review"), part)
        schema = json.loads(Path(recipe.output_schema).read_text("utf-8")) if recipe.output_schema else None
        return cls(Review.open(recipe), Work(recipe.folder).ok, schema, part < 1)

    @property
    def path(self) -> Path:
        """The file of decisions."""
        return self.review.folder / PATCHES

    def refresh(self) -> None:
        """Read the decisions again where somebody else wrote some."""
        with self.lock:
            size = self.path.stat().st_size if self.path.is_file() else 0
            if size != self._size:
                self.items = {item.id: item for item in self.review.items() if item.sampled or not self.is_part}
                self._patches = {}
                for patch in read_patches(self.review.folder):
                    self._patches.setdefault(patch.id, []).append(patch)
                self._size = size

    def ids(self, place: Place) -> list[str]:
        """The rows that pass the reader's filter, in the order of the review."""
        needle = place.search.strip().casefold()
        found = []
        for id, item in self.items.items():
            if place.filter in STATES and item.state != place.filter:
                continue
            if place.filter == "stale" and not item.reviewed.stale:
                continue
            if place.filter == "invalid" and not self.wrong(item):
                continue
            if needle and needle not in self.text(id) and needle not in id.casefold():
                continue
            found.append(id)
        return found

    def window(self, place: Place) -> tuple[list[Item], int, int]:
        """(items around the current row, number of the first of them, number of all)."""
        ids = self.ids(place)
        at = ids.index(place.row) if place.row in ids else 0
        start = max(0, min(at - WINDOW // 2, len(ids) - WINDOW))
        return [self.items[id] for id in ids[start : start + WINDOW]], start, len(ids)

    def step(self, place: Place, by: int) -> str:
        """The row `by` places on in the filtered list; the end is the end. A row that left the filter counts where it
        stood."""
        ids = self.ids(place)
        if not ids:
            return place.row if place.row in self.items else next(iter(self.items), "")
        if place.row in ids:
            return ids[max(0, min(ids.index(place.row) + by, len(ids) - 1))]
        order = {id: number for number, id in enumerate(self.items)}
        mine = order.get(place.row, -1)
        if by < 0:
            return next((id for id in reversed(ids) if order[id] < mine), ids[0])
        return next((id for id in ids if order[id] > mine), ids[-1])

    def first_open(self) -> str:
        """The first row nobody decided about, else the first."""
        return next((id for id, item in self.items.items() if item.state == "pending"), next(iter(self.items), ""))

    def decide(self, place: Place, state: State, author: str, new: Mapping[str, Any] | None = None) -> Item:
        """Decide about the reader's row, on the disk before this returns.

        Args:
            new: JSON Pointer -> edited value.

        Raises:
            RecipeError: no such row, or an edit that does not fit it.
        """
        with self.lock:
            self.refresh()
            item = self._item(place.row)
            patch = self.review.decision(item, state, author, dict(new or {}))
            before = item.reviewed
            self._keep(item.id, [patch])
            place.done.append((item.id, before))
            return self.items[item.id]

    def undo(self, place: Place, author: str) -> str | None:
        """Take the reader's last decision back; the row it was about, None when there is nothing to take back."""
        if not place.done:
            return None
        with self.lock:
            self.refresh()
            id, before = place.done.pop()
            item = self._item(id)
            patches = [self.review.decision(item, "pending", author)]
            if before.state != "pending":
                made = Item(id, item.made, Reviewed(item.made), item.sampled)
                again = dict(changes(item.made, before.row))
                state: State = "edited" if again else before.state
                patches.append(self.review.decision(made, state, author, again, before.note))
            self._keep(id, patches)
            return id

    def counts(self) -> dict[str, int]:
        """Rows by state."""
        found = Counter(item.state for item in self.items.values())
        return {state: found[state] for state in STATES}

    def errors(self) -> ErrorRate | None:
        """The share of rows that were edited or rejected among those decided, with its interval."""
        decided = [item for item in self.items.values() if item.sampled and item.state in DECIDED]
        return error_rate(len(decided), sum(item.state != "accepted" for item in decided)) if decided else None

    def text(self, id: str) -> str:
        """What a search looks through."""
        if id not in self._texts:
            row = self.items[id].reviewed.row
            shown = [value_at(row, place) for place in self.review.fields]
            self._texts[id] = "\n".join(texts_of([value for value in shown if value is not MISSING])).casefold()
        return self._texts[id]

    def _words(self, id: str) -> frozenset[str]:
        text = self.text(id)
        if (known := self._bags.get(id)) is None or known[0] is not text:
            known = self._bags[id] = (text, frozenset(WORD.findall(text)))
        return known[1]

    def title(self, id: str) -> str:
        """A line that tells a row from others: its last text that is not long, on one line."""
        row = self.items[id].reviewed.row
        for name in ("input", "instruction", *(place[1:] for place in self.review.fields)):
            for text in texts_of(row.get(name)):
                if text.strip():
                    return " ".join(text.split())[:120]
        return id

    def similar(self, id: str) -> list[tuple[str, float]]:
        """Rows that say nearly the same, the most alike first, with the share of words they have in common."""
        mine = self._words(id)
        found = []
        for other in self.items:
            theirs = self._words(other)
            if other == id or min(len(mine), len(theirs)) < LEAST_ALIKE * max(len(mine), len(theirs), 1):
                continue
            if (share := len(mine & theirs) / len(mine | theirs)) >= LEAST_ALIKE:
                found.append((other, share))
        return sorted(found, key=lambda pair: -pair[1])[:SIMILAR]

    def wrong(self, item: Item) -> list[str]:
        """What the recipe's output schema says against the row as it stands: "place: message"."""
        if self.schema is None:
            return []
        answer = answer_of(item.made, item.reviewed.row)
        key = canonical_json(answer)
        if key not in self._invalid:
            self._invalid[key] = schema_errors(self.schema, answer)
        return self._invalid[key]

    def _item(self, id: str) -> Item:
        if id not in self.items:
            return self.review.item(id)  # its error names the nearest id
        return self.items[id]

    def _keep(self, id: str, patches: list[Patch]) -> None:
        append_patches(self.review.folder, patches)
        mine = self._patches.setdefault(id, [])
        mine += patches
        item = self.items[id]
        self.items[id] = Item(id, item.made, apply_patches(item.made, mine), item.sampled)
        self._size = self.path.stat().st_size
        self._texts.pop(id, None)


def _drawing(recipe: DatasetRecipe, part: float) -> DatasetRecipe:
    """The recipe with a random part to review; all rows are reviewed in the order the recipe says."""
    return replace(recipe, calibrate=replace(recipe.calibrate, sample=part)) if part < 1 else recipe


def _is_recipe(path: Path) -> bool:
    try:
        return recipe_kind([str(path)]) == "dataset"
    except RecipeError:
        return False
