import random

import pytest

from llmforge.data.example import Example, Message, RowRef
from llmforge.data.split import prompt_key, split_rows
from llmforge.errors import RecipeError


def example(prompt, group=None, reply="a", row=1):
    return Example((Message("user", prompt), Message("assistant", reply)), RowRef("f", row), group=group)


def rows(count):
    return [example(f"q{i}") for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 35, 50, 51])
@pytest.mark.parametrize("val_size", [0, 0.01, 0.5, 0.99, 1, 50, 1000])
def test_no_size_fails_and_every_row_is_on_one_side(count, val_size):
    kept, held, notes = split_rows(rows(count), val_size, seed=1)
    assert sorted(kept + held) == list(range(count))
    assert kept or count == 0
    assert bool(held) == (val_size > 0 and count > 1)
    assert bool(notes) == (val_size > 0 and (count < 2 or val_size >= count))


def test_a_share_and_a_number_hold_out_that_many():
    assert len(split_rows(rows(51), 0.1, seed=0)[1]) == 5
    assert len(split_rows(rows(51), 50, seed=0)[1]) == 50
    assert len(split_rows(rows(35), 0.001, seed=0)[1]) == 1


def test_a_number_that_leaves_nothing_becomes_half_and_says_so():
    kept, held, notes = split_rows(rows(35), 50, seed=0)
    assert (len(kept), len(held)) == (18, 17)
    assert notes == ["val_size: 50 of 35 rows would leave none to learn; half is held out instead"]


def test_one_row_is_learned_and_said():
    assert split_rows(rows(1), 0.1, seed=0) == ([0], [], ["val_size: 1 row cannot be split; nothing is held out"])


def test_the_seed_decides():
    draws = [split_rows(rows(100), 10, seed=s)[1] for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_equal_prompts_and_equal_groups_never_stand_on_both_sides():
    draw = random.Random(0)
    for trial in range(50):
        group_by = trial % 2
        examples = [
            example(f"q{draw.randrange(20)}", group=f"g{draw.randrange(8)}" if group_by else None, reply=str(i))
            for i in range(draw.randrange(2, 120))
        ]
        kept, held, _ = split_rows(examples, draw.choice([0.1, 0.3, 5, 20]), seed=trial)

        def keys(positions, examples=examples, group_by=group_by):
            return {examples[i].group if group_by else examples[i].messages[0].content for i in positions}

        assert sorted(kept + held) == list(range(len(examples)))
        assert not keys(kept) & keys(held)


def test_groups_that_do_not_fit_are_told():
    examples = [example("same", reply=str(i)) for i in range(10)]
    kept, held, notes = split_rows(examples, 3, seed=0)
    assert (len(kept), held) == (10, [])
    assert notes == ["val_size: 0 rows are held out instead of 3, since groups of rows stay together"]


def test_half_rows_are_refused():
    with pytest.raises(RecipeError, match=r"val_size: got 1\.5, expected a share below 1 or a whole number"):
        split_rows(rows(5), 1.5, seed=0)


def test_a_prompt_is_all_turns_before_the_reply_and_the_tools():
    q, a, b = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")
    source = RowRef("f", 1)
    assert (
        prompt_key(Example((q, a), source)) == prompt_key(Example((q, b), source)) == prompt_key(Example((q,), source))
    )
    different = [
        Example((q, a, q, a), source),
        Example((q, b, q, a), source),
        Example((q, a), source, tools=({"name": "f"},)),
        Example((Message("system", "q"), q, a), source),
        Example((), source, text="q"),
        Example((Message("user", "q\0user\0q"), a), source),
    ]
    assert len({prompt_key(e) for e in [Example((q, a), source), *different]}) == 7
