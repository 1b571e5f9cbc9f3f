"""Training, development and test rows, with every group of rows on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from llmforge.errors import RecipeError, nearest

PARTS = ("test", "dev")  # drawn in this order; what is left is train
KEYS = ("dev", "test", "group_by")


def read_split(split: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
    """Sizes of dev and test, and the column that groups rows.

    Raises:
        RecipeError: an unknown key, or a size that is no share or number of rows.
    """
    for key in split:
        if key not in KEYS:
            raise RecipeError(f"convert.split: no such key {key!r}.{nearest(key, KEYS)} Known: {', '.join(KEYS)}")
    sizes = {}
    for part in PARTS:
        size = split.get(part, 0)
        whole = isinstance(size, int) or (isinstance(size, float) and size == int(size))
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 0 or (size >= 1 and not whole):
            raise RecipeError(f"convert.split: {part}: got {size!r}, expected a share below 1 or a number of rows")
        sizes[part] = size
    group_by = split.get("group_by")
    if group_by is not None and (not isinstance(group_by, str) or not group_by):
        raise RecipeError(f"convert.split: group_by: got {group_by!r}, expected a column")
    return sizes, group_by


def split_groups(
    groups: Sequence[str], sizes: Mapping[str, float], seed: int, notes: list[str]
) -> dict[str, list[int]]:
    """Positions of the rows of train, dev and test, each in the rows' order.

    Which side a group falls on depends on its value and the seed alone, not on the order of the rows. A group that
    would exceed a part's size is passed over, so a part may stay smaller than asked; where no group fits, the smallest
    one is taken, so that a part that was asked for is never empty.

    Args:
        groups: the group of each row.
        sizes: rows of "dev" and "test": a share below 1, or a number.
        notes: told where a part has another size than asked.

    Raises:
        RecipeError: nothing would be left to train on.
    """
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    order = sorted(members, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode(errors="replace")).digest())
    parts: dict[str, list[int]] = {}
    taken: set[str] = set()
    for part in PARTS:
        size = sizes.get(part, 0)
        if not size:
            continue
        wanted = max(1, round(size * len(groups))) if size < 1 else int(size)
        chosen: list[int] = []
        for group in order:
            if group not in taken and len(chosen) + len(members[group]) <= wanted:
                chosen += members[group]
                taken.add(group)
        if not chosen and (left := [group for group in order if group not in taken]):
            smallest = min(left, key=lambda group: len(members[group]))
            chosen += members[smallest]
            taken.add(smallest)
        if len(chosen) != wanted:
            notes.append(f"{part}: {len(chosen)} rows instead of {wanted}, since groups of rows stay together")
        parts[part] = sorted(chosen)
    parts["train"] = sorted(i for group, rows in members.items() if group not in taken for i in rows)
    if not parts["train"]:
        asked = ", ".join(f"{part} {sizes[part]:g}" for part in PARTS if sizes.get(part))
        raise RecipeError(f"convert.split: {asked} leave none of {len(groups)} rows to train on")
    return {part: parts[part] for part in ("train", "dev", "test") if part in parts}
