"""Attention over blocks: a common start attended once gives what every row by itself gives."""

from __future__ import annotations

import pytest
import torch

from llmforge.infer.local.paged import BLOCK_SIZE, KeyValues, PagedStep, Span, families

HEADS, KEY_HEADS, WIDTH = 6, 2, 8
NUM_SHARED = 12  # blocks


def spans_of(lengths):
    """Rows (tokens known, new tokens) that share their first blocks; their own blocks lie anywhere."""
    spans, at, own = [], 0, 40
    for start, count in lengths:
        missing = -(-(start + count) // BLOCK_SIZE) - NUM_SHARED
        spans.append(Span(at, start, count, [*range(2, 2 + NUM_SHARED), *range(own, own + missing)]))
        at, own = at + count, own + missing + 1
    return spans


def attended(spans, *, shared, value_width=WIDTH, window=None, cap=None, dtype=torch.float32):
    torch.manual_seed(1)
    tokens = sum(span.count for span in spans)
    cache = KeyValues(100)
    key, value = torch.randn(KEY_HEADS, tokens, WIDTH), torch.randn(KEY_HEADS, tokens, value_width)
    query, key, value = torch.randn(HEADS, tokens, WIDTH).to(dtype), key.to(dtype), value.to(dtype)
    for pool in cache.of(0, key, value):
        pool.copy_(torch.randn(pool.shape))
    step = PagedStep.of(cache, spans, torch.device("cpu"))
    if not shared:
        step.groups = step.whole_groups
    return step.attend(0, query, key, value, 0.4, window, cap)


LENGTHS = [(NUM_SHARED * BLOCK_SIZE + 5, 1), (NUM_SHARED * BLOCK_SIZE + 30, 1), (NUM_SHARED * BLOCK_SIZE, 7)]


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS * 3, [(200, 1)] * 5, [(200, 4)] * 5])
@pytest.mark.parametrize("value_width", [WIDTH, 4])
def test_a_common_start_attended_once_gives_the_same(lengths, value_width):
    spans = spans_of([(max(start, NUM_SHARED * BLOCK_SIZE), count) for start, count in lengths] * 2)
    assert [(len(rows), shared) for rows, shared in families(spans)] == [(len(spans), NUM_SHARED)]
    ours, whole = (attended(spans, shared=shared, value_width=value_width) for shared in (True, False))
    assert torch.allclose(ours, whole, atol=1e-6)


def test_a_window_or_a_cap_on_scores_takes_every_row_by_itself():
    spans = spans_of([(200, 1)] * 6)
    for options in ({"window": 20}, {"cap": 3.0}):
        assert torch.equal(attended(spans, shared=True, **options), attended(spans, shared=False, **options))
    assert not torch.allclose(attended(spans, shared=True, window=20), attended(spans, shared=True))


def test_half_precision_stays_close():
    spans = spans_of([(200, 1)] * 6)
    whole = attended(spans, shared=False)
    assert torch.allclose(attended(spans, shared=True, dtype=torch.bfloat16).float(), whole, atol=0.03)


def test_only_a_start_that_is_computed_and_long_enough_is_shared():
    shared = spans_of([(200, 1)] * 6)
    reading = Span(6, 64, 16, list(range(2, 7)))  # it has computed 4 of the blocks: no more can be shared with it
    alone = Span(22, 300, 1, list(range(60, 79)))
    fresh = Span(23, 16, 40, [2, 3, 4, 5])  # computes what it shares in this very step
    found = [(rows, num) for rows, num in families([*shared, alone, fresh])]
    assert found == [(shared, NUM_SHARED), ([fresh, alone], 0)]
    assert [(len(rows), num) for rows, num in families([*shared * 2, reading])] == [(13, 4)]
    assert [num for _, num in families(shared[:2])] == [0]  # too few rows for so short a start
