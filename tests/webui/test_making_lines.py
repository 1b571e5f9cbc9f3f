"""Slots and checks as lines: what is written comes back, and a line that says nothing is named."""

import pytest

pytest.importorskip("llmforge.webui")
from llmforge.webui.making_lines import from_lines, to_lines
from llmforge.webui.refusal import Refusal

SLOTS = {
    "topic": {"choice": ["a broken printer", "忘记密码"]},
    "stars": {"choice": [1, 2, 3.5]},
    "floor": {"int": [1, 9]},
    "place": {"table": "tables/places.csv", "n": 2},
    "odd": {"choice": ["a, b", "c"]},
    "weighted": {"choice": ["x", "y"], "weights": [3, 1]},
    "digits": {"choice": ["007"]},
}


def test_slots_come_back_as_they_were():
    text = to_lines(SLOTS)
    assert text.splitlines()[:3] == ["topic: a broken printer, 忘记密码", "stars: 1, 2, 3.5", "floor: {int: [1, 9]}"]
    assert from_lines("slots", text) == SLOTS


def test_chinese_commas_and_colons_are_taken():
    assert from_lines("slots", "语气：礼貌、生气，简短") == {"语气": {"choice": ["礼貌", "生气", "简短"]}}


@pytest.mark.parametrize("checks", [["len(out.answer) > 5", "out.start != out.end"], {"places": "out.a != out.b"}, []])
def test_checks_come_back_as_they_were(checks):
    assert (from_lines("checks", to_lines(checks)) or []) == checks


@pytest.mark.parametrize("text", ["a: x\nno colon", "a: x\nb:", "a: x\nb: {int: [1", "a: x\nb: {broken"])
def test_a_line_that_is_no_slot_is_named(text):
    with pytest.raises(Refusal, match="Line 2") as caught:
        from_lines("slots", text)
    assert caught.value.field == "slots"
