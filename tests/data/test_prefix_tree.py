"""The forest of shared prefixes: every row can be read back, and a token sees its row and nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.data.prefix_tree import build_forest, sort_rows


def rows_of(*rows):
    return [np.array(row, np.int64) for row in rows]


def seen_by(forest):
    """(T, T) True where token i sees token j, from the definition of segments."""
    size = len(forest.tokens)
    seen = np.zeros((size, size), bool)
    for start, end, below in forest.segments:
        for i in range(start, below):
            seen[i, start : min(end, i + 1)] = True
    return seen


ROWS = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from([1, 2, 4, 100]))
def test_each_row_lies_on_its_path_and_sees_nothing_else(rows, min_shared):
    rows = rows_of(*rows)
    forest = build_forest(rows, min_shared)
    seen = seen_by(forest)
    for row, path in zip(rows, forest.paths, strict=True):
        assert forest.tokens[path].tolist() == row.tolist()
        assert forest.positions[path].tolist() == list(range(len(row)))
        for place, token in enumerate(path):
            assert set(np.flatnonzero(seen[token])) == set(path[: place + 1])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ROWS)
def test_sharing_every_token_computes_each_prefix_once(rows):
    forest = build_forest(rows_of(*rows), min_shared=1)
    prefixes = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    assert len(forest.tokens) == len(prefixes)


def test_short_common_starts_are_not_worth_a_segment():
    rows = rows_of([1, 2, 3, 4], [1, 2, 5, 6])
    assert len(build_forest(rows, min_shared=3).tokens) == 8
    assert len(build_forest(rows, min_shared=2).tokens) == 6


def test_equal_rows_and_a_row_inside_another_need_no_tokens_of_their_own():
    forest = build_forest(rows_of([7, 8, 9], [7, 8, 9], [7, 8]), min_shared=1)
    assert forest.tokens.tolist() == [7, 8, 9]
    assert [path.tolist() for path in forest.paths] == [[0, 1, 2], [0, 1, 2], [0, 1]]


def test_ids_sort_as_numbers_not_as_bytes():
    assert sort_rows(rows_of([256], [255], [65536, 1], [65536])) == [1, 0, 3, 2]


def test_a_thousand_nested_prefixes_do_not_exhaust_the_stack():
    rows = rows_of(*([1] * (16 * n) for n in range(1, 1500, 10)))
    assert len(build_forest(rows).tokens) == max(map(len, rows))
