"""Test rows that training rows give away are named; a shared instruction is no leak."""

from llmforge.datagen.contamination import find_leaks

TEXT = "the quick brown fox jumps over the lazy dog while seven small cats watch from a warm roof"
WORDS = TEXT.split()


def test_thirteen_words_in_a_row_are_a_leak_and_twelve_are_none():
    train = ["before it: " + " ".join(WORDS[:13]) + " and then something else entirely happens here"]
    thirteen = "Question: " + ", ".join(WORDS[:13]).upper() + "?"
    twelve = "Question: " + " ".join(WORDS[:12]) + " stands?"
    leaks = find_leaks(train, [twelve, thirteen])
    assert [(leak.test, leak.train, leak.how) for leak in leaks] == [(1, 0, "13 words in a row")]
    assert leaks[0].example == " ".join(WORDS[:13])
    assert leaks[0].share == 0.5  # one of the two sequences of its 14 words


def test_chinese_counts_characters():
    train = ["背景说明若干：北岸大桥东侧发现管涌请求支援，其余情况待报"]
    test = ["题目：北岸大桥东侧发现管涌请求支援", "题目：北岸大桥东侧发现险情请求支援"]
    assert [leak.test for leak in find_leaks(train, test)] == [0]


def test_a_near_copy_is_a_leak_even_when_it_is_short():
    leaks = find_leaks(["水泵坏了怎么办理报修手续"], ["水泵坏了，怎么办理报修手续？", "路灯坏了找谁"])
    assert [(leak.test, leak.how, leak.share) for leak in leaks] == [(0, "near copy", 1.0)]


def test_an_instruction_that_every_row_repeats_is_no_leak():
    instruction = "Read the report below and answer with the one word that names the kind of incident it tells of."
    train = [f"{instruction} Report {i}: {WORDS[i % 18]} {i * 7919}" for i in range(11)]
    test = [f"{instruction} Report x: something new"]
    assert find_leaks(train, test, common=10, max_similarity=1) == []
    assert len(find_leaks(train[:10], test, common=10, max_similarity=1)) == 1
