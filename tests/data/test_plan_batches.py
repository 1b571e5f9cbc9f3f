import numpy as np
import pytest

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.plan import even_parts, lay_packed, lay_padded, plan_batches

SHORT = Encoded([7, 8, 9], [IGNORE, 8, 9])
LONG = Encoded([1, 2, 3, 4, 5], [IGNORE, IGNORE, IGNORE, 4, 5])


def test_padded_batch_is_as_written_by_hand():
    (batch,) = plan_batches([SHORT, LONG], budget=10, layout="padded", pad_id=99)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 99, 99]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert batch.segments.tolist() == [[0, 5, 5], [5, 8, 8]]
    assert batch.state.tolist() == [2, 3, 5, 6]
    assert batch.target.tolist() == [4, 5, 8, 9]
    assert batch.row.tolist() == [0, 0, 1, 1]
    assert (batch.num_rows, batch.rows.tolist()) == (2, [1, 0])
    assert batch.lengths.tolist() == [5, 3]
    assert batch.num_tokens == 8
    assert batch.attention_mask.tolist() == [[True] * 5, [True, True, True, False, False]]


def test_packed_batch_is_as_written_by_hand():
    (batch,) = plan_batches([SHORT, LONG], budget=8, layout="packed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.segments.tolist() == [[0, 5, 5], [5, 8, 8]]
    assert batch.state.tolist() == [2, 3, 5, 6]
    assert batch.target.tolist() == [4, 5, 8, 9]
    assert batch.row.tolist() == [0, 0, 1, 1]


def test_the_first_token_of_a_row_is_never_a_target():
    row = Encoded([3, 4], [3, 4])
    for layout in ("padded", "packed", "tree"):
        (batch,) = plan_batches([row, row], budget=100, layout=layout)
        assert batch.target.tolist() == [4, 4]


def test_a_label_may_differ_from_its_id():
    batch = lay_packed([Encoded([195, 5, 195], [IGNORE, 5, 2])], [0])
    assert list(zip(batch.state, batch.target, strict=True)) == [(0, 5), (1, 2)]


def test_a_batch_without_targets_or_rows_can_be_written():
    silent = lay_padded([Encoded([1, 2], [IGNORE, IGNORE])], [0])
    assert silent.state.size == silent.target.size == silent.row.size == 0
    for nothing in (lay_padded([], []), lay_packed([], [])):
        assert nothing.num_rows == 0
        assert nothing.segments.shape == (0, 3)
    assert plan_batches([], budget=5, layout="packed") == []


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_every_row_and_every_target_comes_once_within_the_budget(layout):
    draw = np.random.default_rng(0)
    for _ in range(30):
        rows = []
        for length in draw.integers(1, 40, size=draw.integers(1, 50)):
            ids = draw.integers(0, 1000, length).tolist()
            rows.append(Encoded(ids, [i if draw.random() < 0.5 else IGNORE for i in ids]))
        budget, most = int(draw.integers(30, 200)), int(draw.integers(1, 8))
        batches = plan_batches(rows, budget, layout, max_rows=most)
        assert sorted(i for batch in batches for i in batch.rows) == list(range(len(rows)))
        for batch in batches:
            assert batch.num_rows <= most
            assert batch.input_ids.size <= budget or batch.num_rows == 1
            flat = batch.input_ids.reshape(-1)
            for number, index in enumerate(batch.rows):
                start, end, _ = batch.segments[number]
                assert flat[start:end].tolist() == rows[index].input_ids
                mine = batch.row == number
                wanted = [(t - 1, y) for t, y in enumerate(rows[index].labels) if t and y != IGNORE]
                assert list(zip(batch.state[mine] - start, batch.target[mine], strict=True)) == wanted


def test_a_row_longer_than_the_budget_gets_its_own_batch():
    batches = plan_batches([LONG, SHORT, SHORT], budget=4, layout="padded")
    assert [batch.rows.tolist() for batch in batches] == [[0], [1], [2]]


def test_packing_leaves_less_than_half_a_line_free_on_average():
    rows = [Encoded([1] * n, [IGNORE] * n) for n in (60, 40, 50, 50, 30, 70)]
    assert [b.input_ids.shape for b in plan_batches(rows, budget=100, layout="packed")] == [(1, 100)] * 3


def test_wrong_layouts_and_empty_rows_are_refused():
    with pytest.raises(ValueError, match="expected one of padded, packed"):
        plan_batches([SHORT], budget=5, layout="grid")
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        plan_batches([SHORT, Encoded([], [])], budget=5, layout="packed")


def test_tree_batch_is_as_written_by_hand():
    start = list(range(20, 36))  # 16 tokens: just enough to be shared
    rows = [
        Encoded([*start, 1, 2], [IGNORE] * 16 + [1, 2]),
        Encoded([9], [9]),
        Encoded([*start, 3], [IGNORE] * 16 + [4]),
    ]
    (batch,) = plan_batches(rows, budget=100, layout="tree")
    assert batch.rows.tolist() == [1, 0, 2]
    assert batch.input_ids.tolist() == [[9, *start, 1, 2, 3]]
    assert batch.position_ids.tolist() == [[0, *range(16), 16, 17, 16]]
    assert batch.segments.tolist() == [[0, 1, 1], [1, 17, 20], [17, 19, 19], [19, 20, 20]]
    # the first targets of both rows are predicted from the last state of what they share
    assert list(zip(batch.state, batch.target, batch.row, strict=True)) == [(16, 1, 1), (17, 2, 1), (16, 4, 2)]
    assert (batch.num_tokens, batch.row_tokens) == (20, 36)


def test_trees_are_cut_where_the_budget_ends():
    start = list(range(100, 120))
    rows = [Encoded([*start, n, n], [n] * 22) for n in range(6)]
    batches = plan_batches(rows, budget=27, layout="tree")
    assert [batch.num_tokens for batch in batches] == [26, 26]  # 20 shared + 3 rows of 2
    assert [len(batch.rows) for batch in plan_batches(rows, budget=5, layout="tree")] == [1] * 6


def test_ranks_get_parts_of_about_the_same_cost():
    costs = np.array([[100, 0], *[[110, 100]] * 10, [100, 0]])  # 300 tokens in all
    assert [sum(length - shared for length, shared in costs[list(part)]) for part in even_parts(costs, 3)] == [
        100,
        100,
        100,
    ]
    assert [len(part) for part in even_parts(costs[:1], 3)].count(0) == 2
