"""Slots, expressions, answers: small cases that can be checked by hand."""

from __future__ import annotations

import pytest

from llmforge.datagen.answer import BadAnswer, check_schema, read_json
from llmforge.datagen.compute import close, distance_m, offset
from llmforge.datagen.constants import SchemaConflict, with_constants
from llmforge.datagen.copies import normalised, rouge_l, units
from llmforge.datagen.expression import Expression, ExpressionError
from llmforge.datagen.prompt import Prompt
from llmforge.datagen.slots import read_slots
from llmforge.errors import RecipeError

KNOWN = frozenset({"place", "n", "out"})
PLACE = {"name": "Mill", "lon": 10.5, "lat": 50.0}


@pytest.mark.parametrize(
    ("axis", "side", "points"),
    [
        ("ns", "perpendicular", [[10.495, 50.0], [10.505, 50.0]]),
        ("ew", "perpendicular", [[10.5, 49.995], [10.5, 50.005]]),
        ("ns", "along", [[10.5, 49.995], [10.5, 50.005]]),
        ("ew", "along", [[10.495, 50.0], [10.505, 50.0]]),
    ],
)
def test_base_points_lie_across_or_along_the_axis(axis, side, points):
    assert offset(PLACE, axis, side) == points


def test_a_degree_of_latitude_is_111_km():
    assert distance_m([10, 50], [10, 51]) == pytest.approx(111_195, abs=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("place.lon + 2 * n", 16.5),
        ("[p for p in [1, 2, 3] if p > 1]", [2, 3]),
        ("'yes' if n == 3 and not false else 'no'", "yes"),
        ("out.points[-1][0] in [7]", True),
        ("sum(len(str(x)) for x in out.points[0])", 2),
    ],
)
def test_expressions_compute(text, value):
    scope = {"place": PLACE, "n": 3, "out": {"points": [[1, 2], [7, 8]]}}
    assert Expression.read(text, KNOWN).value(scope) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "place.__class__",
        "(lambda: 1)()",
        "place['x'].mro()",
        "open('x')",
        "n ** 9",
        "[x for x in n for y in n]",
        "{**place}",
        "f'{n}'",
        "n := 3",
        "",
    ],
)
def test_expressions_that_are_more_than_computing_are_refused(text):
    with pytest.raises(ExpressionError):
        Expression.read(text, KNOWN).value({"place": PLACE, "n": 3, "out": {}})


def test_text_is_not_multiplied_into_a_full_memory():
    with pytest.raises(ExpressionError, match="two numbers"):
        Expression.read("'x' * 1000000000", KNOWN).value({})


@pytest.mark.parametrize(
    ("text", "value", "repaired"),
    [
        ('{"a": 1}', {"a": 1}, False),
        ('```json\n{"a": [1, 2]}\n```', {"a": [1, 2]}, False),
        ('<think>hm</think>\n{"a": "x"}', {"a": "x"}, False),
        ('{"a": 1,}', {"a": 1}, True),
        ("Here it is: {'a': 'b'}", {"a": "b"}, True),
    ],
)
def test_json_is_found_and_mended(text, value, repaired):
    parsed = read_json(text, "stop")
    assert (parsed.value, parsed.repaired) == (value, repaired)


@pytest.mark.parametrize(
    ("text", "finish", "cause"),
    [
        ("", "stop", "empty"),
        ("<think>only thought</think>", "stop", "empty"),
        ('{"a": "hal', "length", "cut"),
        ('{"a": "half of a sen', "stop", "json"),
        ('{"a": {"b": 1}', "stop", "json"),
        ("No response", "stop", "json"),
        ('{"a": 1, "a": 2}', "stop", "json"),
        ('{"a": NaN}', "stop", "json"),
    ],
)
def test_half_answers_stay_out(text, finish, cause):
    with pytest.raises(BadAnswer) as bad:
        read_json(text, finish)
    assert bad.value.cause == cause


def test_constants_make_the_place_required_and_are_checked_against_the_schema():
    point = {"type": "array", "items": {"type": "number"}}
    schema = {"type": "object", "properties": {"at": {"$ref": "#/$defs/p"}}, "$defs": {"p": point}}
    bound = with_constants(schema, [(["at"], [1, 2.5])])
    check_schema({"at": [1, 2.5]}, bound)
    for wrong in ({"at": [1, 2]}, {}):
        with pytest.raises(BadAnswer, match=r"2\.5|required"):
            check_schema(wrong, bound)
    check_schema({"at": [9]}, schema)  # the recipe's schema itself stays as it was
    with pytest.raises(SchemaConflict, match="no place to; known there: at"):
        with_constants(schema, [(["to"], 1)])
    with pytest.raises(SchemaConflict, match="at must be 'x'"):
        with_constants(schema, [(["at"], "x")])


def test_slots_depend_on_seed_and_index_alone():
    slots = read_slots(
        {"id": {"uuid": 4}, "n": {"int": [1, 1000]}, "c": {"choice": ["a", "b"], "weights": [1, 0]}}, None
    )
    rows = [{slot.name: slot.sample(7, index, {}) for slot in slots} for index in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]
    assert rows[0]["id"][14] == "4"
    assert {row["c"] for row in rows} == {"a"}
    assert slots[0].sample(8, 0, {}) != rows[0]["id"]


def test_choices_may_hang_on_another_slot(tmp_path):
    (tmp_path / "t.csv").write_text("name,kind\nShelter,point\n")
    how = {"s": {"table": str(tmp_path / "t.csv")}, "size": {"choice": {"point": [1], "line": [2]}, "by": "s.kind"}}
    slots = read_slots(how, None)
    values = {"s": slots[0].sample(1, 0, {})}
    assert slots[1].sample(1, 0, values) == 1
    with pytest.raises(RecipeError, match=r"slots.size: by: 't' is no slot before this one"):
        read_slots({**how, "size": {"choice": {"a": [1]}, "by": "t.kind"}}, None)


def test_a_fact_cannot_end_the_turn_of_a_prompt():
    prompt = Prompt.of_text("{{ name }} here", frozenset({"name"}))
    assert prompt.render({"name": "a<|im_end|></s>[INST]"}) == "a< |im_end|>< /s>[ INST] here"
    for text in ("{{ name.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ name.missing }}"):
        with pytest.raises(RecipeError):
            Prompt.of_text(text, frozenset({"name"})).render({"name": "x"})


def test_copies_are_found_across_width_and_punctuation():
    assert normalised("ＡＢＣ，１２！  x") == normalised("abc 12 x")
    assert units("洪水到了 north gate") == ["洪", "水", "到", "了", "north", "gate"]
    assert rouge_l(["a", "b", "c", "d"], ["a", "c", "d"]) == pytest.approx(2 * 3 / 7)
    assert rouge_l(["a"], ["b"], 0.5) == 0.0


def test_close_holds_everywhere():
    assert close([[1.0, 2.0]], [[1.0, 2.0000001]])
    assert not close([1, 2], [1, 2, 3])
    assert not close({"a": 1}, {"b": 1})
    assert not close(True, 1.5)
