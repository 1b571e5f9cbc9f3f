import random

import pytest

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.truncate import cut_up, keep_end, keep_start, learned_spans

X = IGNORE
STOP = 9
# Two rounds: prompt 1 1, reply 2 2 and its end 9; prompt 3 3, reply 4 4 4 and its end 9.
ROW = Encoded([1, 1, 2, 2, 9, 3, 3, 4, 4, 4, 9], [X, X, 2, 2, 9, X, X, 4, 4, 4, 9])


def test_spans_are_the_learned_runs():
    assert learned_spans(ROW.labels) == [(2, 5), (7, 11)]
    assert learned_spans([X, X]) == []
    assert learned_spans([1, X, 1]) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("limit", "ids"),
    [
        (10, [1, 1, 2, 2, 9, 3, 3, 4, 4, 9]),  # the reply loses its last token, not its end
        (9, [1, 1, 2, 2, 9, 3, 3, 4, 9]),
        (8, [1, 1, 2, 2, 9]),  # not one token of the reply would fit before its end
        (6, [1, 1, 2, 2, 9]),
        (5, [1, 1, 2, 2, 9]),
        (4, [1, 1, 2, 9]),
        (3, None),
        (2, None),
    ],
)
def test_right_keeps_the_start_and_the_end_token(limit, ids):
    kept = keep_start(ROW, limit, {STOP})
    assert [row.input_ids for row in kept] == ([ids] if ids else [])
    for row in kept:
        assert len(row.input_ids) == len(row.labels) <= limit
        assert row.labels[-1] == STOP


def test_right_keeps_a_line_break_behind_the_end_token():
    row = Encoded([1, 2, 2, 2, 9, 5], [X, 2, 2, 2, 9, 5])
    assert keep_start(row, 4, {STOP}) == [Encoded([1, 2, 9, 5], [X, 2, 9, 5])]


def test_right_keeps_an_end_that_is_only_in_the_labels():
    row = Encoded([195, 5, 196, 6, 6, 6, 195, 7], [X, X, X, 6, 6, 6, 2, X])  # Baichuan2: eos is the label under 195
    assert keep_start(row, 6, {2}) == [Encoded([195, 5, 196, 6, 6, 195], [X, X, X, 6, 6, 2])]


def test_left_keeps_the_end_and_the_bos():
    assert keep_end(ROW, 4, bos_id=None) == [Encoded([4, 4, 4, 9], [X, 4, 4, 9])]
    row = Encoded([0, *ROW.input_ids], [X, *ROW.labels])
    assert keep_end(row, 4, bos_id=0) == [Encoded([0, 4, 4, 9], [X, 4, 4, 9])]
    assert keep_end(ROW, 4, bos_id=1) == [Encoded([4, 4, 4, 9], [X, 4, 4, 9])]  # 1 marks turns here


def test_split_cuts_after_a_reply_and_repeats_one_token_inside_it():
    assert cut_up(ROW, 8) == [
        Encoded([1, 1, 2, 2, 9], [X, X, 2, 2, 9]),
        Encoded([3, 3, 4, 4, 4, 9], [X, X, 4, 4, 4, 9]),
    ]
    assert cut_up(ROW, 4) == [
        Encoded([1, 1, 2, 2], [X, X, 2, 2]),
        Encoded([2, 9], [X, 9]),
        Encoded([3, 3, 4, 4], [X, X, 4, 4]),
        Encoded([4, 4, 9], [X, 4, 9]),
    ]


def random_row(draw):
    ids, labels = [], []
    for _ in range(draw.randrange(1, 5)):
        prompt = [1] * draw.randrange(1, 12)
        reply = [draw.randrange(2, 8) for _ in range(draw.randrange(1, 12))]
        ids += [*prompt, *reply, STOP]
        labels += [*([X] * len(prompt)), *reply, STOP]
    return Encoded(ids, labels)


def targets(rows):
    return [label for row in rows for label in row.labels[1:] if label != X]


def test_split_makes_every_learned_token_a_target_once():
    draw = random.Random(0)
    for _ in range(300):
        row, limit = random_row(draw), draw.randrange(2, 30)
        pieces = cut_up(row, limit)
        assert targets(pieces) == targets([row])
        assert all(len(piece.input_ids) <= limit for piece in pieces)
        assert all(piece.labels[0] == X for piece in pieces)


def test_right_never_loses_an_end_in_silence():
    draw = random.Random(1)
    for _ in range(300):
        row, limit = random_row(draw), draw.randrange(1, 40)
        for kept in keep_start(row, limit, {STOP}):
            assert len(kept.input_ids) <= max(limit, 0)
            spans = learned_spans(kept.labels)
            assert all(kept.labels[end - 1] == STOP for _, end in spans)
            assert kept.input_ids[: spans[-1][1] - 1] == row.input_ids[: spans[-1][1] - 1]
