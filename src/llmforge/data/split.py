"""Holding rows out for evaluation, so that nothing that is evaluated was learned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from llmforge.data.example import Example
from llmforge.errors import RecipeError


def split_rows(examples: Sequence[Example], val_size: float, seed: int) -> tuple[list[int], list[int], list[str]]:
    """Positions of the rows to learn from and of those held out, both in their old order, and notes.

    Rows of one group stay together: equal values of val_group_by where it is given, equal prompts otherwise. Groups are
    drawn at random until the number is reached; a group that would exceed it is passed over.

    Args:
        val_size: a share of the rows (below 1; at least one row is held out, and one learned), or a number of rows. A
            number that would leave nothing to learn becomes half of the rows.

    Raises:
        RecipeError: a number of rows that is not whole.
    """
    everything = list(range(len(examples)))
    if val_size >= 1 and val_size != int(val_size):
        raise RecipeError(f"val_size: got {val_size}, expected a share below 1 or a whole number of rows")
    if val_size == 0:
        return everything, [], []
    if len(examples) < 2:
        return everything, [], [f"val_size: {len(examples)} row cannot be split; nothing is held out"]
    notes = []
    share = min(max(1, round(val_size * len(examples))), len(examples) - 1)
    wanted = share if val_size < 1 else int(val_size)
    if wanted >= len(examples):
        notes.append(f"val_size: {wanted} of {len(examples)} rows would leave none to learn; half is held out instead")
        wanted = len(examples) // 2
    groups: dict[bytes, list[int]] = {}
    for position, example in enumerate(examples):
        key = prompt_key(example) if example.group is None else b"group " + example.group.encode()
        groups.setdefault(key, []).append(position)
    members = list(groups.values())
    held: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(members)):
        if len(held) + len(members[number]) <= wanted:
            held += members[number]
        if len(held) == wanted:
            break
    if len(held) < wanted:
        notes.append(f"val_size: {len(held)} rows are held out instead of {wanted}, since groups of rows stay together")
    chosen = set(held)
    return [i for i in everything if i not in chosen], sorted(held), notes


def prompt_key(example: Example) -> bytes:
    """The same for rows that ask the same: all turns before the last reply, and the tools; for plain text the text."""
    if example.text is not None:
        return _digest([example.text])
    messages = example.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    turns = [part for m in messages for part in (m.role, m.content, repr(m.tool_calls) if m.tool_calls else "")]
    return _digest([*turns, repr(example.tools) if example.tools else ""])


def _digest(parts: list[str]) -> bytes:
    return hashlib.sha256("\0".join(f"{len(part)}:{part}" for part in parts).encode()).digest()
