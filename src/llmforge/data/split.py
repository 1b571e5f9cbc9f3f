"""Holding rows out for evaluation, so that nothing that is evaluated was learned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from llmforge.data.example import Example
from llmforge.errors import RecipeError


def split_rows(examples: Sequence[Example], val_size: float, seed: int) -> tuple[list[int], list[int], list[str]]:
    """`split_keys` of examples."""
    keys = np.array([group_key(example) for example in examples], np.uint64)
    kept, held, notes = split_keys(keys, val_size, seed)
    return kept.tolist(), held.tolist(), notes


def split_keys(keys: np.ndarray, val_size: float, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Positions of the rows to learn from and of those held out, both in their old order, and notes.

    Groups of rows are drawn at random until the number is reached; a group that would exceed it is passed over.

    Args:
        keys: (rows,) uint64, `group_key` of each; equal ones stay together.
        val_size: a share of the rows (below 1; at least one row is held out, and one learned), or a number of rows. A
            number that would leave nothing to learn becomes half of the rows.

    Raises:
        RecipeError: a number of rows that is not whole.
    """
    everything = np.arange(len(keys))
    if val_size >= 1 and val_size != int(val_size):
        raise RecipeError(f"val_size: got {val_size}, expected a share below 1 or a whole number of rows")
    if val_size == 0:
        return everything, everything[:0], []
    if len(keys) < 2:
        return everything, everything[:0], [f"val_size: {len(keys)} row cannot be split; nothing is held out"]
    notes = []
    share = min(max(1, round(val_size * len(keys))), len(keys) - 1)
    wanted = share if val_size < 1 else int(val_size)
    if wanted >= len(keys):
        notes.append(f"val_size: {wanted} of {len(keys)} rows would leave none to learn; half is held out instead")
        wanted = len(keys) // 2
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    held: list[np.ndarray] = []
    count = 0
    for number in np.random.default_rng(seed).permutation(len(members)):
        rows = members[by_appearance[number]]
        if count + len(rows) <= wanted:
            held.append(rows)
            count += len(rows)
        if count == wanted:
            break
    if count < wanted:
        notes.append(f"val_size: {count} rows are held out instead of {wanted}, since groups of rows stay together")
    chosen = np.zeros(len(keys), bool)
    chosen[np.concatenate([everything[:0], *held])] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen), notes


def group_key(example: Example) -> int:
    """64 bits that are equal for rows of one group: of val_group_by where it is given, of equal prompts otherwise."""
    if example.group is None:
        return row_key(example)
    return int.from_bytes(
        hashlib.sha256(b"group " + example.group.encode("utf-8", "surrogatepass")).digest()[:8], "big"
    )


def row_key(example: Example) -> int:
    """The first 64 bits of `prompt_key`; two of a million rows share them by chance once in 30 million times."""
    return int.from_bytes(prompt_key(example)[:8], "big")


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
