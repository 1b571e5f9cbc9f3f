"""Cells that cannot be right: a longer maximum length that takes less memory, or goes faster, than a shorter one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from llmforge.bench.ledger import Row

# Below this the order of two runs means nothing: rates of one command differ by up to 10 % between runs, peaks by 3 %.
RATE_NOISE = 0.10
MEMORY_NOISE = 0.03


@dataclass(frozen=True)
class Inversion:
    """Two rows that differ in the maximum length alone and lie the wrong way round."""

    shorter: Row
    longer: Row
    text: str


def find_inversions(rows: Iterable[Row]) -> list[Inversion]:
    """Compare neighbouring lengths of rows that are equal otherwise; rows of made data may differ in their data too."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.good:
            groups.setdefault((replace(row.cell, length=0), row.machine), []).append(row)
    found = []
    for group in groups.values():
        for shorter, longer in pairwise(sorted(group, key=lambda row: row.cell.length)):
            if shorter.cell.length == longer.cell.length:
                continue
            for key, what, noise, sign in (
                ("peak_bytes", "less memory", MEMORY_NOISE, -1),
                ("samples_per_s", "faster", RATE_NOISE, 1),
            ):
                a, b = shorter.median(key), longer.median(key)
                if a and b and sign * (b / a - 1) > noise:
                    cell = longer.cell
                    text = (
                        f"{cell.model}, {cell.method}, {cell.batching}: length {cell.length} is {what} than "
                        f"{shorter.cell.length} ({describe(key, b)} and {describe(key, a)})"
                    )
                    found.append(Inversion(shorter, longer, text))
    return found


def describe(key: str, value: float) -> str:
    """A value with its unit."""
    return f"{value / 2**20:,.0f} MiB" if key == "peak_bytes" else f"{value:.3g} samples/s"
