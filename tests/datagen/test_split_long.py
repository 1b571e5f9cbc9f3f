"""Parts put together are the rounds that went in, less those reported; FastChat's lost rounds stay found."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.data.example import RowRef, RowReport
from llmforge.datagen.chats import Chat
from llmforge.datagen.split_long import split_chat, split_rows
from llmforge.datagen.step_keys import SplitConfig


def chat(*lengths: int, system: int | None = None) -> dict:
    said = [] if system is None else [{"from": "system", "value": "s" * system}]
    said += [{"from": ("human", "gpt")[i % 2], "value": str(i % 10) * n} for i, n in enumerate(lengths)]
    return {"id": "c", "conversations": said}


def parts_of(row: dict, max_tokens: int, overhead: int = 6) -> tuple[list[dict], RowReport]:
    report = RowReport("split", rows_in=1)
    parts, _ = split_rows([(RowRef("f", 1), row)], len, SplitConfig(max_tokens=max_tokens, overhead=overhead), report)
    return parts, report


def test_four_messages_of_five_tokens_keep_both_rounds():  # FastChat keeps one of two
    parts, _ = parts_of(chat(5, 5, 5, 5), 40)
    assert [part["id"] for part in parts] == ["c_0", "c_1"]
    assert [turn for part in parts for turn in part["conversations"]] == chat(5, 5, 5, 5)["conversations"]


def test_six_messages_keep_all_three_rounds():  # FastChat keeps two of three
    parts, _ = parts_of(chat(5, 5, 5, 5, 5, 5), 44)
    assert [len(part["conversations"]) for part in parts] == [4, 2]
    assert [part["id"] for part in parts] == ["c_0", "c_2"]


def test_a_round_that_is_too_long_is_named_and_makes_no_empty_part():  # FastChat leaves an empty part or the long one
    for lengths, where, ids in (((50, 5, 5, 5), 0, ["c_1"]), ((5, 5, 5, 50), 1, ["c_0"])):
        parts, report = parts_of(chat(*lengths), 40)
        assert [part["id"] for part in parts] == ids
        assert report.fixed == [(RowRef("f", 1), f"round {where} is longer than 40; left out")]


def test_no_part_hides_a_gap_in_the_middle():
    parts, report = parts_of(chat(1, 1, 90, 1, 1, 1), 40)
    assert [part["id"] for part in parts] == ["c_0", "c_2"]
    assert len(report.fixed) == 1


def test_a_row_of_long_rounds_alone_is_rejected():
    parts, report = parts_of(chat(90, 90), 40)
    assert parts == []
    assert report.rejected == [(RowRef("f", 1), "every round is too long")]


def test_a_conversation_that_fits_stays_as_it_is():
    row = chat(5, 5, 5, 5, system=3)
    assert parts_of(row, 53)[0] == [row]  # (3 + 6) + 4 x (5 + 6)
    assert len(parts_of(row, 52)[0]) == 2


def test_the_system_text_stands_in_every_part_and_counts():
    parts, _ = parts_of(chat(5, 5, 5, 5, system=9), 37)
    assert [part["conversations"][0]["from"] for part in parts] == ["system", "system"]
    assert parts_of(chat(5, 5, 5, 5, system=9), 36)[0] == []


def test_tool_turns_stay_in_the_round_they_belong_to():
    said = [("human", "q"), ("function_call", "{}"), ("observation", "r"), ("gpt", "a"), ("human", "q"), ("gpt", "a")]
    row = {"id": "t", "conversations": [{"from": who, "value": text} for who, text in said]}
    parts, _ = parts_of(row, 30)
    assert [[turn["from"] for turn in part["conversations"]] for part in parts] == [
        ["human", "function_call", "observation", "gpt"],
        ["human", "gpt"],
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 90), st.integers(0, 8))
def test_parts_are_the_rounds_less_the_long_ones(lengths, max_tokens, overhead):
    row = Chat.of(chat(*lengths))
    config = SplitConfig(max_tokens=max_tokens, overhead=overhead)
    parts, too_long = split_chat(row, len, config)
    _, rounds = row.rounds()
    expected = [turn for i, turns in enumerate(rounds) if i not in too_long for turn in turns]
    assert [turn for _, turns in parts for turn in turns] == expected
    for _, turns in parts:
        assert 0 < sum(len(turn.text) + overhead for turn in turns) <= max_tokens or overhead == 0
        assert turns
    for number in too_long:
        assert sum(len(turn.text) + overhead for turn in rounds[number]) > max_tokens
