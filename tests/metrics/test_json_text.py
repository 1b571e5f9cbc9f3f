from __future__ import annotations

import pytest

from llmforge.metrics.json_text import MISSING, field_at, leaves, parse_json


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "3",
        '"a"',
        "true",
        "null",
        '{"a": 1',
        '{"a": 1} and more',
        "```json\n{}\n```",
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": "\\ud800"}',
        "[1,]",
        "[" * 100_000 + "]" * 100_000,
        '{"a": 1e}',
        "[" + "9" * 5000 + "]",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_json_object_or_array(text):
    assert parse_json(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],\n "a":1}'),
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": 1e2}', '{"a": 100}'),
        ('{"类型": "火灾"}', '{"\\u7c7b\\u578b": "\\u706b\\u707e"}'),
        (' {"a": -0.0} ', '{"a": 0}'),
    ],
)
def test_equal_answers_share_their_canonical_text(one, other):
    assert parse_json(one).canonical == parse_json(other).canonical


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1}', '{"a": true}'),
        ("[1, 2]", "[2, 1]"),
        ('{"a": "1"}', '{"a": 1}'),
        ('{"a": null}', "{}"),
        ("[]", "{}"),
    ],
)
def test_different_answers_do_not(one, other):
    assert parse_json(one).canonical != parse_json(other).canonical


def test_leaves_have_dotted_paths_with_list_wildcards():
    answer = parse_json('{"points": [{"lat": 1, "lon": 2}, {"lat": 3}], "who": {"name": "Li", "tags": []}}')
    assert leaves(answer.value) == [
        ("points[*].lat", "1"),
        ("points[*].lon", "2"),
        ("points[*].lat", "3"),
        ("who.name", '"Li"'),
        ("who.tags", "[]"),
    ]


def test_names_with_dots_are_quoted_and_the_top_may_be_a_list_or_empty():
    assert leaves({"a.b": {"": None}}) == [('["a.b"][""]', "null")]
    assert leaves([[1]]) == [("[*][*]", "1")]
    assert leaves({}) == [("$", "{}")]


def test_answers_nested_hundreds_of_levels_deep_are_read_or_refused_but_never_crash():
    for depth in (100, 500, 900, 960, 1000, 5000):
        answer = parse_json("[" * depth + "1" + "]" * depth)
        if answer is not None:
            assert leaves(answer.value) == [("[*]" * depth, "1")]


def test_a_field_may_lie_inside_another():
    value = {"a": {"b": None}, "a.c": 1}
    assert field_at(value, "a.b") is None
    assert field_at(value, "a.c") == 1
    assert field_at(value, "a.x") is MISSING
    assert field_at([1], "a") is MISSING
    assert field_at(value, "a.b.c") is MISSING
