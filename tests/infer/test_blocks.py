"""The pool of cache blocks: shared texts, the least recently used one goes first, nothing is lost."""

from __future__ import annotations

from llmforge.infer.local.blocks import BlockPool

ROOT = ("adapter", "")


def filled(pool, tokens, root=ROOT):
    """Hold blocks for these tokens and publish the full ones, as a row that computes them does."""
    blocks = pool.take(pool.blocks_for(len(tokens)))
    place = root
    for i in range(len(tokens) // pool.block_size):
        place = pool.publish(place, tokens[i * pool.block_size : (i + 1) * pool.block_size], blocks[i])
    return blocks


def test_a_text_is_found_as_far_as_full_blocks_go():
    pool = BlockPool(8, 4)
    blocks = filled(pool, list(range(10)))
    assert pool.find(ROOT, list(range(10)))[0] == blocks[:2]
    assert pool.find(ROOT, [0, 1, 2, 3, 4, 9, 9, 9])[0] == blocks[:1]
    assert pool.find(ROOT, [1, 2, 3, 4])[0] == []
    assert pool.find(("adapter", "other"), list(range(10)))[0] == []  # an adapter's keys are its own


def test_block_0_is_never_given_out():
    assert sorted(BlockPool(5, 4).take(5)) == [1, 2, 3, 4, 5]


def test_more_than_there_is_is_not_given():
    pool = BlockPool(2, 4)
    assert pool.take(3) is None
    assert pool.num_available == 2


def test_released_texts_stay_until_their_room_is_needed_and_the_oldest_goes_first():
    pool = BlockPool(4, 4)
    first, second = filled(pool, [1] * 8), filled(pool, [2] * 8)
    pool.release(first)
    pool.release(second)
    assert (pool.num_held, pool.num_cached) == (0, 4)
    pool.take(1)
    assert len(pool.find(ROOT, [1] * 8)[0]) == 1  # its end went, its start is still of use
    assert len(pool.find(ROOT, [2] * 8)[0]) == 2


def test_a_text_that_was_used_again_is_kept_longer():
    pool = BlockPool(2, 4)
    first, second = filled(pool, [1] * 4), filled(pool, [2] * 4)
    pool.release(first)
    pool.release(second)
    pool.hold(first)
    pool.release(first)
    pool.take(1)
    assert pool.find(ROOT, [1] * 4)[0] == first
    assert pool.find(ROOT, [2] * 4)[0] == []


def test_a_shared_block_is_free_when_its_last_holder_lets_go():
    pool = BlockPool(2, 4)
    blocks = filled(pool, [1] * 4)
    pool.hold(blocks)
    pool.release(blocks)
    assert pool.num_held == 1
    assert pool.only_held_once(blocks) == blocks
    pool.release(blocks)
    assert pool.num_held == 0


def test_what_was_taken_back_is_not_found():
    pool = BlockPool(4, 4)
    blocks = filled(pool, [1] * 8)
    pool.retract(blocks[1:])
    assert pool.find(ROOT, [1] * 8)[0] == blocks[:1]
    pool.release(blocks)
    assert (pool.num_cached, pool.num_available) == (1, 4)


def test_nothing_is_found_after_a_change_of_the_weights():
    pool = BlockPool(4, 4)
    pool.release(filled(pool, [1] * 8))
    held = filled(pool, [2] * 8)
    pool.forget()
    assert pool.find(ROOT, [1] * 8)[0] == pool.find(ROOT, [2] * 8)[0] == []
    pool.release(held)
    assert pool.num_available == 4


def test_one_of_two_equal_texts_is_enough():
    pool = BlockPool(4, 4)
    first, second = filled(pool, [1] * 4), filled(pool, [1] * 4)
    pool.release(second)
    assert (pool.num_held, pool.num_cached) == (1, 0)
    assert pool.find(ROOT, [1] * 4)[0] == first
