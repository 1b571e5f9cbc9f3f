"""The least similar rows: near copies first, then from every cluster those that lie farthest apart.

Vectors are TF-IDF over hashed character 3-grams, so no model is needed. The result does not depend on the order of the
rows, because all work is done in the order of the texts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmforge.datagen.dedupe import compared, find_copies, grams

DIMENSIONS = 1024
ROUNDS = 20  # of k-means; it settles in fewer on every set tried
BLOCK = 2048  # rows compared with all others at a time
MEASURED = 5000  # rows whose nearest row is looked for, evenly spaced; all pairs of 100,000 rows would take minutes


@dataclass(frozen=True)
class Diversified:
    """Which rows stay, in their old order, and how alike rows are before and after."""

    kept: list[int]
    copies: list[tuple[int, int]]  # near copies that were left out first, each with the row it copies
    clusters: list[tuple[int, int]]  # size of each cluster, and how many of it stay
    similarity_before: float
    similarity_after: float


def diversify(texts: Sequence[str], keep: float, max_clusters: int = 256, near: float = 0.8) -> Diversified:
    """Choose about `keep` of the rows, the least similar ones.

    Near copies are left out first and count as left out, so that only what is still too much is chosen from. Each
    cluster of k-means (k = sqrt(rows / 2), at most `max_clusters`) keeps its share, rounded up, so none vanishes.

    Args:
        texts: one text a row.
        keep: share of all rows to keep, above 0 to 1.
        near: rapidfuzz ratio from which rows are near copies.
    """
    order = sorted(range(len(texts)), key=lambda i: (compared(texts[i]), texts[i], i))
    copies = find_copies([texts[i] for i in order], near)
    dropped = {copy.row for copy in copies}
    rows = vectors([texts[i] for i in order])
    rest = [i for position, i in enumerate(order) if position not in dropped]
    wanted = math.ceil(keep * len(texts))
    kept, clusters = rest, [(len(rest), len(rest))]
    if len(rest) > wanted:
        chosen, clusters = _choose(vectors([texts[i] for i in rest]), wanted / len(rest), max_clusters)
        kept = [rest[i] for i in chosen]
    return Diversified(
        sorted(kept),
        [(order[copy.row], order[copy.of]) for copy in copies],
        clusters,
        nearest_similarity(rows),
        nearest_similarity(rows[np.isin(order, kept)]),
    )


def vectors(texts: Sequence[str]) -> np.ndarray:
    """(rows, 1024) float32 unit vectors: TF-IDF of character 3-grams, hashed with signs so that collisions cancel.

    Source: Weinberger et al. 2009, "Feature hashing for large scale multitask learning", eq. 2.
    """
    hashed = [
        np.array([zlib.crc32(g.encode(errors="surrogatepass")) for g in sorted(grams(compared(t)))]) for t in texts
    ]
    found, counts = np.unique(np.concatenate(hashed), return_counts=True) if hashed else (np.empty(0), np.empty(0))
    weight = np.log((1 + len(texts)) / (1 + counts)) + 1
    result = np.zeros((len(texts), DIMENSIONS), np.float32)
    for row, ids in enumerate(hashed):
        signs = np.where((ids >> 16) & 1, 1.0, -1.0)
        np.add.at(result[row], ids % DIMENSIONS, signs * weight[np.searchsorted(found, ids)])
    length = np.linalg.norm(result, axis=1, keepdims=True)
    return result / np.maximum(length, 1e-12)


def nearest_similarity(rows: np.ndarray) -> float:
    """Mean cosine of each row with the row most like it; 0.0 for fewer than two rows."""
    if len(rows) < 2:
        return 0.0
    asked = np.linspace(0, len(rows) - 1, min(len(rows), MEASURED)).astype(int)
    total = 0.0
    for start in range(0, len(asked), BLOCK):
        block = asked[start : start + BLOCK]
        similar = rows[block] @ rows.T
        similar[np.arange(len(block)), block] = -1.0
        total += float(similar.max(axis=1).sum())
    return total / len(asked)


def _choose(rows: np.ndarray, share: float, max_clusters: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Positions that stay, and (size, kept) of each cluster."""
    labels = _clusters(rows, max(1, min(round(math.sqrt(len(rows) / 2)), max_clusters)))
    chosen: list[int] = []
    sizes = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        take = math.ceil(share * len(members) - 1e-9)
        chosen += members[_farthest_first(rows[members], take)].tolist()
        sizes.append((len(members), take))
    return chosen, sizes


def _clusters(rows: np.ndarray, k: int) -> np.ndarray:
    """(rows,) cluster of each row: k-means on unit vectors, started from rows that lie far apart."""
    centres = rows[_farthest_first(rows, k)]
    labels = np.full(len(rows), -1)
    for _ in range(ROUNDS):
        new = np.argmax(rows @ centres.T, axis=1)
        if (new == labels).all():
            break
        labels = new
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, rows)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    return labels


def _farthest_first(rows: np.ndarray, count: int) -> list[int]:
    """`count` positions: first the row closest to the middle, then each time the one farthest from those chosen.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance", Theor. Comput. Sci. 38.
    """
    first = int(np.argmax(rows @ rows.mean(axis=0)))
    chosen, closest = [first], rows @ rows[first]
    closest[first] = np.inf
    while len(chosen) < count:
        following = int(np.argmin(closest))
        chosen.append(following)
        closest = np.maximum(closest, rows @ rows[following])
        closest[following] = np.inf
    return chosen
