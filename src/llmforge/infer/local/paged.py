"""Attention over cache blocks, behind the attention of an unmodified model through transformers' AttentionInterface.

A step lays the new tokens of all rows on one flat line. In every layer their keys and values are written to the rows'
blocks; then rows of similar size are attended together, keys gathered from their blocks and masked by position. So the
number of attention calls does not depend on how many rows run, and no value is read back from the device before the
step's logits. Blocks that many rows begin with are attended once for all of them, in one large product.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import mmap
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmforge.infer.local.live import base_of

NAME = "forge_paged"
BLOCK_SIZE = 16  # tokens; half a block is wasted per row, and prefixes are shared in steps of this size
WASTE = 1.25  # how much larger padding may make an attention call before its rows are split into two
CALL_COST = 4096  # what one more call costs, in products of one query with one key (30 us of a core)
FAMILY_BLOCKS = 4  # rows whose first blocks are the same ones are looked at for more
SHARE_FROM = 512  # keys that rows need not read again before their common start is attended apart (80 us of a core)


class KeyValues:
    """The pool's memory: per layer (blocks, block size, heads, width) for keys and for values.

    Made layer by layer when the first token comes, since only the model knows the shapes. Zeroed, so that what a mask
    hides is finite.
    """

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks + 1  # block 0 is padding
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The pool of a layer; `key`, `value` (heads, tokens, width) show its shape."""
        if layer not in self.layers:
            places = (self.num_blocks, BLOCK_SIZE)
            of_keys, of_values = (zeros((*places, x.shape[0], x.shape[2]), x) for x in (key, value))
            self.layers[layer] = (of_keys, of_values)
        return self.layers[layer]

    def fill(self, like: KeyValues) -> None:
        """Write to all memory of a cache that is not used yet, so that it is there; `like` is one of the same model."""
        for layer, (keys, values) in like.layers.items():
            for pool in self.of(layer, keys[0].transpose(0, 1), values[0].transpose(0, 1)):
                pool.zero_()

    @property
    def bytes_per_token(self) -> int:
        return sum(x[0, 0].numel() * x.element_size() for pair in self.layers.values() for x in pair)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Let blocks hold what others hold: (from, to), one after the other."""
        for source, target in pairs:
            for pair in self.layers.values():
                for pool in pair:
                    pool[target] = pool[source]

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks that hold something which is no number."""
        for pair in self.layers.values():
            for pool in pair:
                pool[list(blocks)] = 0


def zeros(size: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the type and device of `like`; on a CPU they take memory only where something was written."""
    if like.device.type != "cpu":
        return torch.zeros(size, dtype=like.dtype, device=like.device)
    pages = mmap.mmap(-1, math.prod(size) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype).view(size)


@dataclass(frozen=True)
class Span:
    """New tokens of one row on the flat line: `count` from place `at`, the first at position `start` of the row."""

    at: int
    start: int
    count: int
    blocks: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass
class Group:
    """Rows that are attended in one call, `width` queries each, padded where a row has fewer."""

    places: slice | Tensor  # of the queries on the flat line, row by row: (rows * width,)
    tables: Tensor | slice  # (rows * blocks,) block of each stretch of keys, those of `shared` left out
    shared: Tensor | slice | None  # (blocks,) that every row begins with, all before its new tokens
    num_shared: int  # of them
    positions: Tensor  # (rows, width) of the queries
    real: tuple[Tensor, Tensor] | None  # of the queries that are no padding: in the group, on the line; None: all are
    _masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device, num_shared: int = 0) -> Group:
        rows, width = len(spans), max(span.count for span in spans)
        end = max(-(-span.end // BLOCK_SIZE) for span in spans)
        tables = [[*span.blocks[num_shared:end], *[0] * (end - max(num_shared, len(span.blocks)))] for span in spans]
        first = torch.tensor([span.start for span in spans])[:, None]
        counts = torch.tensor([span.count for span in spans])[:, None]
        steps = torch.arange(width)[None].expand(rows, width).minimum(counts - 1)  # padding repeats the last query
        at = torch.tensor([span.at for span in spans])[:, None]
        is_even = all(span.count == width for span in spans)
        is_line = is_even and all(a.at + width == b.at for a, b in itertools.pairwise(spans))
        places = (at + steps).flatten()
        real = (torch.arange(width)[None] < counts).flatten().nonzero()[:, 0]
        return cls(
            slice(spans[0].at, spans[0].at + rows * width) if is_line else places.to(device),
            places_of(list(itertools.chain(*tables)), device),
            places_of(spans[0].blocks[:num_shared], device) if num_shared else None,
            num_shared,
            (first + steps).to(device),
            None if is_even else (real.to(device), places[real].to(device)),
        )

    def mask(self, window: int | None, num_keys: int, num_sharing: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores: 0 where a query sees a key, -inf elsewhere; made once for all layers alike.

        Args:
            num_sharing: heads whose queries follow each other.

        Returns:
            (rows, 1, num_sharing * width, keys), or (rows, 1, 1, keys) where every query of a row sees the same.
        """
        if (window, num_sharing) not in self._masks:
            first = self.num_shared * BLOCK_SIZE
            keys = torch.arange(first, first + num_keys, device=self.positions.device)
            seen = keys <= self.positions[..., None]
            if window is not None:
                seen &= self.positions[..., None] - keys < window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]
            self._masks[window, num_sharing] = mask if seen.shape[1] == 1 else mask.repeat(1, 1, num_sharing, 1)
        return self._masks[window, num_sharing]


@dataclass
class Wanted:
    """The tokens of a step that somebody asks for behind the last layer: it need only answer for these."""

    places: Tensor  # (tokens,) on the line, in the order of the rows
    spans: Sequence[Span]  # of these tokens, on a line of their own


@dataclass
class PagedStep:
    """What the attention of every layer needs to know about a step."""

    cache: KeyValues
    spans: Sequence[Span]
    slots: Tensor  # (tokens,) where each new token's key and value go: block * BLOCK_SIZE + place in it
    num_tokens: int  # of the spans; what lies behind them on the line is nobody's
    wanted: Wanted | None = None  # all of them unless said

    @classmethod
    def of(cls, cache: KeyValues, spans: Sequence[Span], device: torch.device, length: int | None = None) -> PagedStep:
        """`length` is that of the line, the tokens of the spans unless given."""
        slots = [
            span.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for span in spans
            for position in range(span.start, span.end)
        ]
        num_tokens = len(slots)
        slots += [0] * ((length or num_tokens) - num_tokens)  # block 0 is padding
        return cls(cache, spans, torch.tensor(slots, device=device), num_tokens)

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The step's rows, what they share attended apart."""
        return [
            Group.of(part, self.slots.device, num_shared)
            for family, num_shared in families(self.spans)
            for part in grouped(family, num_shared * BLOCK_SIZE)
        ]

    @functools.cached_property
    def whole_groups(self) -> list[Group]:
        """The same for layers in which a row does not see all of what it shares, or not as it is."""
        return [Group.of(part, self.slots.device) for part in grouped(self.spans)]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """Write the new keys and values, then attend.

        Args:
            query: (heads, tokens, width). key, value: (key heads, tokens, width).

        Returns:
            (tokens, heads, value width).
        """
        self.write(layer, key, value)
        return self.read(layer, query, scale, window, cap)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the new keys and values (key heads, tokens, width) where they belong."""
        for pool, new in zip(self.cache.of(layer, key, value), (key, value), strict=True):
            pool.view(-1, *pool.shape[2:]).index_copy_(0, self.slots, new.transpose(0, 1))

    def read(self, layer: int, query: Tensor, scale: float, window: int | None, cap: float | None) -> Tensor:
        """Attend over what is written; `query` and the result as in `attend`."""
        keys, values = self.cache.layers[layer]
        flat = query.transpose(0, 1)  # (tokens, heads, width)
        groups = self.groups if window is None and cap is None else self.whole_groups
        if len(groups) == 1 and isinstance(groups[0].places, slice) and self.num_tokens == len(flat):
            return attend_group(groups[0], flat, keys, values, scale, window, cap)
        out = flat.new_empty(flat.shape[0], flat.shape[1], values.shape[-1])
        out[self.num_tokens :] = 0
        for group in groups:
            places = group.places
            chosen = flat[places] if isinstance(places, slice) else flat.index_select(0, places)
            part = attend_group(group, chosen, keys, values, scale, window, cap)
            if isinstance(places, slice):
                out[places] = part
            elif group.real is None:
                out.index_copy_(0, places, part)
            else:
                out.index_copy_(0, group.real[1], part.index_select(0, group.real[0]))
        return out

    @functools.cached_property
    def of_wanted(self) -> PagedStep:
        """The step that reads for the wanted tokens only; it writes nothing."""
        assert self.wanted is not None
        return PagedStep(self.cache, self.wanted.spans, self.slots[:0], len(self.wanted.places))


def families(spans: Sequence[Span]) -> Iterator[tuple[list[Span], int]]:
    """Rows, and the number of blocks that all of them begin with and that are worth attending apart; or 0."""
    by_start: dict[tuple[int, ...], list[Span]] = {}
    others: list[Span] = []
    for span in spans:
        if span.start < FAMILY_BLOCKS * BLOCK_SIZE:
            others.append(span)
        else:
            by_start.setdefault(tuple(span.blocks[:FAMILY_BLOCKS]), []).append(span)
    for family in by_start.values():
        starts = (span.blocks[: span.start // BLOCK_SIZE] for span in family)
        columns = zip(*starts, strict=False)  # as long as the shortest
        num_shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        if (len(family) - 1) * num_shared * BLOCK_SIZE >= SHARE_FROM:
            yield family, num_shared
        else:
            others += family
    if others:
        yield others, 0


def grouped(spans: Sequence[Span], num_left_out: int = 0) -> Iterator[list[Span]]:
    """Rows of neighbouring sizes whose attention is cheaper in one padded call than in two.

    Args:
        num_left_out: keys at the start of every row that the call does not read.
    """
    group: list[Span] = []
    cost = width = longest = 0
    for span in sorted(spans, key=lambda span: (span.count, span.end, span.at)):
        num_keys = span.end - num_left_out
        alone = span.count * num_keys
        wider, longer = max(width, span.count), max(longest, num_keys)
        together = (len(group) + 1) * wider * longer
        if group and together > WASTE * (cost + alone) + CALL_COST:
            yield group
            group, cost, wider, longer = [], 0, span.count, num_keys
        group.append(span)
        cost, width, longest = cost + alone, wider, longer
    if group:
        yield group


def attend_group(
    group: Group, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, cap: float | None
) -> Tensor:
    """The attention of a group's rows.

    Args:
        query: (rows * width, heads, head width). keys, values: a layer's pool.

    Returns:
        (rows * width, heads, value width).
    """
    rows, width = group.positions.shape
    kv_heads = keys.shape[2]
    num_sharing = query.shape[1] // kv_heads  # heads of one key head
    k, v = (gathered(pool, group.tables, rows) for pool in (keys, values))
    mask = group.mask(window, k.shape[2], num_sharing, query.dtype)
    # The heads that share a key head fold into the query length, so that keys and values are not repeated.
    folded = query.view(rows, width, kv_heads, num_sharing, -1)
    q = folded.permute(0, 2, 3, 1, 4).flatten(2, 3)
    sums = None
    if cap is not None:
        scores = cap * torch.tanh(q @ k.transpose(-1, -2) * scale / cap) + mask
        out = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v
    elif group.shared is None:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    else:
        out, sums = attend_with_sums(q, k, v, mask, scale)
    out = out.unflatten(2, (num_sharing, width)).permute(0, 3, 1, 2, 4)  # (rows, width, key heads, group, value width)
    if group.shared is not None and sums is not None:
        k, v = (gathered(pool, group.shared, 1) for pool in (keys, values))
        q = folded.permute(2, 0, 1, 3, 4).reshape(1, kv_heads, -1, query.shape[-1])
        first, first_sums = attend_with_sums(q, k, v, None, scale)
        first = first.view(kv_heads, rows, width, num_sharing, -1).permute(1, 2, 0, 3, 4)
        first_sums = first_sums.view(kv_heads, rows, width, num_sharing).permute(1, 2, 0, 3)
        sums = sums.unflatten(2, (num_sharing, width)).permute(0, 3, 1, 2)
        # Softmax over both stretches of keys: each one's own, weighted by its share of the sum of all exponentials.
        out = torch.lerp(out, first, torch.sigmoid(first_sums - sums).to(out.dtype)[..., None])
    return out.reshape(rows * width, query.shape[1], -1)


def places_of(blocks: Sequence[int], device: torch.device) -> Tensor | slice:
    """Where blocks lie in a pool; neighbours, as a text that was read at once has them, need no copy."""
    if all(a + 1 == b for a, b in itertools.pairwise(blocks)):
        return slice(blocks[0], blocks[-1] + 1)
    return torch.tensor(blocks, device=device)


def gathered(pool: Tensor, tables: Tensor | slice, rows: int) -> Tensor:
    """Blocks of a layer's pool one after the other: (rows, key heads, keys, width)."""
    chosen = pool[tables] if isinstance(tables, slice) else pool.index_select(0, tables)
    return chosen.view(rows, -1, *pool.shape[2:]).transpose(1, 2)


def attend_with_sums(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention (rows, heads, queries, width), and the logarithm of each query's sum of exponentials."""
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = flash(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        return out, sums
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1).to(v.dtype) @ v, torch.logsumexp(scores, -1)


# Behind a model

_step: ContextVar[PagedStep | None] = ContextVar("forge_paged_step", default=None)


def current_step() -> PagedStep | None:
    """The step that a pass belongs to; None outside of `paged_attention`."""
    return _step.get()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, width) and so on -> (1, tokens, heads, width)."""
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    window, cap = options.get("sliding_window"), options.get("softcap")
    step = _step.get()
    assert step is not None  # NAME is a model's attention only inside of paged_attention
    return step.attend(module.layer_idx, query[0], key[0], value[0], scale, window, cap)[None], None


@contextlib.contextmanager
def paged_attention(model: Any, step: PagedStep) -> Iterator[None]:
    """Inside, the model's layers attend over the step's blocks; afterwards the model is as it was."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(NAME, _attention)  # no mask is registered for it, so transformers makes none
    config = base_of(model).config
    own = config._attn_implementation
    token = _step.set(step)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _step.reset(token)
