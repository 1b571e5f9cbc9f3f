"""Which starts of prompts a worker has seen, so that requests can go where theirs is known. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

STRIDE = 32  # tokens between two places at which prompts are compared
KEPT = 4096  # places remembered


class KnownPrefixes:
    """The prompts of one worker; a guess, since the worker may have thrown some away."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, None] = OrderedDict()

    def num_known(self, adapter: Hashable, ids: Sequence[int]) -> int:
        """Tokens at the start of `ids` that it has seen."""
        count = 0
        for place in places(adapter, ids):
            if place not in self._seen:
                break
            count += STRIDE
        return count

    def add(self, adapter: Hashable, ids: Sequence[int]) -> None:
        """It has seen these now."""
        for place in places(adapter, ids):
            self._seen[place] = None
            self._seen.move_to_end(place)
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)


def places(adapter: Hashable, ids: Sequence[int]) -> Iterator[int]:
    """A number for each start of `ids` whose length is a multiple of STRIDE."""
    place = hash(adapter)
    for start in range(0, len(ids) - STRIDE + 1, STRIDE):
        place = hash((place, *ids[start : start + STRIDE]))
        yield place
