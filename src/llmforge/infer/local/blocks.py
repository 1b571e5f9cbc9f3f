"""Blocks of the key-value cache: who holds which, what text stands in them, what may be thrown away. No torch here.

A block has room for `block_size` tokens. Full blocks are published under the text that leads to them, so that another
row which begins with the same tokens holds them too instead of computing them again: a radix tree whose edges are
blocks. What nobody holds stays until its room is needed; the least recently used text goes first.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

Place = Hashable  # a node of the tree: the text that ends there, as what find and publish hand out


class BlockPool:
    """Bookkeeping of blocks 1 to `num_blocks`; block 0 is never given out, so that it can stand for padding."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks, 0, -1))
        self._holders = [0] * (num_blocks + 1)
        self._by_text: dict[tuple[Place, tuple[int, ...]], tuple[int, int]] = {}  # (before, tokens) -> block, serial
        self._text: dict[int, tuple[Place, tuple[int, ...]]] = {}  # published block -> its key above
        self._by_start: dict[tuple[Place, tuple[int, ...]], int] = {}  # (before, first tokens) -> a block
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and held by nobody, oldest first
        self._serials = itertools.count()

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give."""
        return len(self._free) + len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        """Blocks that hold a text nobody uses at the moment."""
        return len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find(self, root: Place, tokens: Sequence[int]) -> tuple[list[int], Place]:
        """Blocks that hold the longest known start of `tokens`, and the place where it ends. They are not held yet."""
        blocks: list[int] = []
        place = root
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            entry = self._by_text.get((place, tuple(tokens[start : start + self.block_size])))
            if entry is None:
                break
            blocks.append(entry[0])
            place = entry[1]
        return blocks, place

    def find_start(self, place: Place, tokens: Sequence[int]) -> tuple[int, int]:
        """A block behind `place` that begins with the most of `tokens`, and how many; (0, 0) when there is none."""
        for count in range(min(len(tokens), self.block_size - 1), 0, -1):
            if (block := self._by_start.get((place, tuple(tokens[:count])))) is not None:
                return block, count
        return 0, 0

    def num_idle(self, blocks: Sequence[int]) -> int:
        """How many of these nobody holds: holding them takes room from others."""
        return sum(block in self._idle for block in blocks)

    def only_held_once(self, blocks: Sequence[int]) -> list[int]:
        """Those of held blocks that nobody shares."""
        return [block for block in blocks if self._holders[block] == 1]

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold found blocks."""
        for block in blocks:
            self._holders[block] += 1
            self._idle.pop(block, None)

    def take(self, count: int) -> list[int] | None:
        """Hold so many blocks of unknown content, or None when there are not enough."""
        if count > self.num_available:
            return None
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._unpublish(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def publish(self, before: Place, tokens: Sequence[int], block: int) -> Place:
        """Say that a held block holds `tokens` after the text of `before`; returns the place where they end."""
        key = (before, tuple(tokens))
        if key not in self._by_text:  # else two rows computed the same; one copy is enough
            self._by_text[key] = (block, next(self._serials))
            self._text[block] = key
            for start in self._starts(key):
                self._by_start.setdefault(start, block)
        return self._by_text[key][1]

    def release(self, blocks: Sequence[int]) -> None:
        """Hold these no longer. The end of a text becomes the older one, so that it goes before its start."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._text:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def retract(self, blocks: Sequence[int]) -> None:
        """Take back what was published about these: the forward pass that should have filled them failed."""
        for block in blocks:
            self._unpublish(block)
            if block in self._idle:
                del self._idle[block]
                self._free.append(block)

    def forget(self) -> None:
        """Forget all texts, as after a change of the weights; rows go on with the blocks they hold."""
        self.retract(list(self._text))

    def _unpublish(self, block: int) -> None:
        if (key := self._text.pop(block, None)) is not None:
            del self._by_text[key]
            for start in self._starts(key):
                if self._by_start.get(start) == block:
                    del self._by_start[start]

    def _starts(self, key: tuple[Place, tuple[int, ...]]) -> Iterator[tuple[Place, tuple[int, ...]]]:
        before, tokens = key
        return ((before, tokens[:count]) for count in range(1, self.block_size))
