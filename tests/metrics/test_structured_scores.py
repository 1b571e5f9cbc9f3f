"""Exact match, labels, JSON fields, and metrics taken together."""

from __future__ import annotations

import json

import pytest

from llmforge.config.names import METRICS
from llmforge.config.schema import EvalConfig
from llmforge.errors import RecipeError
from llmforge.metrics.exact import exact_match
from llmforge.metrics.json_fields import json_scores
from llmforge.metrics.label import label_scores
from llmforge.metrics.scores import Scores, check_metrics, f1, mean, score

OPTIONS = EvalConfig()


def test_exact_match_overlooks_key_order_and_the_raw_one_does_not():
    predictions = ['{"b": 2, "a": 1}', "fire ", "Fire", "", "1.0", '{"a": 1, "b": 3}']
    labels = ['{"a": 1, "b": 2}', "fire", "fire", "fire", "1", '{"a": 1, "b": 2}']
    scores = exact_match(predictions, labels, OPTIONS)
    assert [row["exact_match"] for row in scores.per_row] == [True, True, False, False, False, False]
    assert scores.values == {"exact_match": pytest.approx(2 / 6), "exact_match_raw": pytest.approx(1 / 6)}


def test_labels_are_whole_answers_without_a_field():
    scores = label_scores(["fire", "flood", "quake", " fire\n"], ["fire", "fire", "flood", "fire"], OPTIONS)
    assert scores.values["label_accuracy"] == 0.5
    assert scores.values["label_valid"] == 0.75  # "quake" is no label of the references
    assert scores.tables["confusion"].columns == ["label", "fire", "flood", "(other)", "(no label)"]
    assert scores.tables["confusion"].rows == [["fire", 2, 1, 0, 0], ["flood", 0, 0, 1, 0]]
    fire, flood = scores.tables["labels"].rows
    assert fire == ["fire", 3, 2, 2, 1.0, pytest.approx(2 / 3), pytest.approx(0.8)]
    assert flood == ["flood", 1, 1, 0, 0.0, 0.0, 0.0]
    assert scores.values["label_macro_f1"] == pytest.approx(0.4)


def test_labels_may_be_a_field_of_a_json_answer():
    options = EvalConfig(label_field="类别")
    labels = ['{"类别": "火灾", "级别": 1}', '{"类别": "洪水", "级别": 2}', '{"级别": 3}']
    predictions = ['{"级别": 9, "类别": "火灾"}', "火灾", '{"类别": "火灾"}']
    scores = label_scores(predictions, labels, options)
    assert scores.values["label_accuracy"] == 0.5
    assert scores.tables["confusion"].rows == [["洪水", 0, 0, 0, 1], ["火灾", 0, 1, 0, 0]]
    assert scores.per_row[2] == {}
    assert scores.notes == ["label: 1 of 3 references have no label and are not counted"]


def test_labels_that_are_no_strings_are_named_by_their_json():
    options = EvalConfig(label_field="a.b")
    labels = ['{"a": {"b": true}}', '{"a": {"b": 1}}', '{"a": {"b": [1, 2]}}']
    assert label_scores(labels, labels, options).tables["confusion"].columns[1:4] == ["1", "[1,2]", "true"]


def test_free_text_taken_for_labels_makes_no_matrix_of_millions_of_cells():
    texts = [f"answer {i}" for i in range(201)]
    scores = label_scores(texts, texts, OPTIONS)
    assert "confusion" not in scores.tables
    assert scores.notes == ["label: no confusion matrix for 201 labels, more than 200"]
    assert "confusion" in label_scores(texts[1:], texts[1:], OPTIONS).tables


def test_a_label_may_be_called_other():
    scores = label_scores(["x", "(other)"], ["(other)", "(other)"], OPTIONS)
    assert scores.tables["confusion"].columns == ["label", "(other)", "(no label)"]
    assert scores.values["label_accuracy"] == 0.5


def test_a_label_field_nobody_has_names_the_nearest():
    with pytest.raises(
        RecipeError, match=r"no reference has a field 'lable'. Did you mean 'label'\? Fields there: label"
    ):
        label_scores(["x"], ['{"label": "a"}'], EvalConfig(label_field="lable"))
    with pytest.raises(RecipeError, match="no reference is a JSON object; the first one is 'a'"):
        label_scores(["x"], ["a"], EvalConfig(label_field="label"))


def test_json_fields_are_counted_as_by_hand():
    labels = [
        '{"type": "fire", "points": [{"lat": 1}, {"lat": 2}]}',
        '{"type": "flood", "note": null}',
        '{"type": "quake"}',
    ]
    predictions = ['{"points": [{"lat": 2}, {"lat": 9}], "type": "fire", "more": 1}', '{"type": "fire"}', "a quake"]
    scores = json_scores(predictions, labels, OPTIONS)
    # leaves: 3 + 2 + 1 = 6 in the references, 4 + 1 + 0 = 5 predicted, right are type and lat 2 of the first row
    assert scores.values == {
        "json_valid": pytest.approx(2 / 3),
        "json_exact": 0.0,
        "json_field_precision": pytest.approx(2 / 5),
        "json_field_recall": pytest.approx(2 / 6),
        "json_field_f1": pytest.approx(4 / 11),
    }
    lines = {row[0]: row[1:6] for row in scores.tables["fields"].rows}  # reference, predicted, right, missing, extra
    assert lines == {
        "type": [3, 2, 1, 1, 0],
        "points[*].lat": [2, 2, 1, 0, 0],
        "more": [0, 1, 0, 0, 1],
        "note": [1, 0, 0, 1, 0],
    }
    assert scores.per_row[0]["wrong_fields"] == ["points[*].lat"]
    assert scores.per_row[0]["extra_fields"] == ["more"]
    assert scores.per_row[1]["missing_fields"] == ["note"]
    assert scores.per_row[2] == {
        "json_valid": False,
        "json_exact": False,
        "missing_fields": ["type"],
        "extra_fields": [],
        "wrong_fields": [],
        "json_field_f1": 0.0,
    }


def test_json_counts_no_reference_that_is_text():
    scores = json_scores(['{"a": 1}', "x"], ['{"a": 1}', "free text"], OPTIONS)
    assert scores.values["json_exact"] == 1
    assert scores.per_row[1] == {}
    assert scores.notes == ["json: 1 of 2 references are no JSON and are not counted"]
    with pytest.raises(RecipeError, match="json needs JSON references"):
        json_scores(["x"], ["free text"], OPTIONS)


def test_an_empty_answer_to_an_empty_list_is_right():
    scores = json_scores(['{"points": []}', "{}"], ['{"points": []}', '{"points": []}'], OPTIONS)
    assert [row["json_exact"] for row in scores.per_row] == [True, False]
    assert scores.per_row[1]["missing_fields"] == ["points"]


def test_several_metrics_join_and_can_be_written_as_json():
    names = ["exact_match", "label", "json", "bleu", "rouge", "exact_match"]
    scores = score(names, ['{"label": "a"}'] * 2, ['{"label": "a"}', '{"label": "b"}'], EvalConfig(label_field="label"))
    assert scores.values["exact_match"] == scores.values["label_accuracy"] == scores.values["json_field_f1"] == 0.5
    assert scores.per_row[0]["exact_match"]
    assert scores.per_row[0]["rouge-l"] == pytest.approx(100, abs=1e-4)
    json.dumps([scores.values, scores.per_row, {name: table.as_dict() for name, table in scores.tables.items()}])


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_takes_no_rows_and_strange_ones(name):
    assert METRICS.get(name)([], [], OPTIONS).values == {}
    labels = ['{"a": "\U0001f600"}', '{"a": "e\u0301"}', "{}", "[]"]
    scores = METRICS.get(name)(["", "\u0000", "\ufeff{}", "[" * 3000], labels, OPTIONS)
    assert len(scores.per_row) == 4
    assert all(0 <= value <= 100 for value in scores.values.values())


def test_unknown_metrics_are_found_before_anything_is_generated():
    with pytest.raises(RecipeError, match=r"metric: 'blue' is not known\. Did you mean 'bleu'"):
        check_metrics(["blue"], OPTIONS)


def test_a_plugin_may_register_a_metric_but_not_take_the_name_of_a_value():
    def same_length(predictions, labels, options):
        rows = [{"same_length": len(p) == len(t)} for p, t in zip(predictions, labels, strict=True)]
        return Scores({"same_length": mean(row["same_length"] for row in rows)}, rows)

    def second_exact(predictions, labels, options):
        return Scores({"exact_match": 1.0}, [{} for _ in predictions])

    METRICS.add("same_length_of_a_test", same_length)
    METRICS.add("second_exact_of_a_test", second_exact)
    assert score(["same_length_of_a_test"], ["ab", "a"], ["cd", "cd"], OPTIONS).values == {"same_length": 0.5}
    with pytest.raises(RecipeError, match="both report exact_match"):
        score(["exact_match", "second_exact_of_a_test"], ["a"], ["b"], OPTIONS)


def test_predictions_without_labels_are_refused():
    with pytest.raises(ValueError, match="2 predictions but 1 labels"):
        score(["exact_match"], ["a", "b"], ["a"], OPTIONS)


def test_a_metric_that_loses_rows_is_refused():
    METRICS.add("loses_rows_in_a_test", lambda predictions, labels, options: Scores({"x": 1.0}, [{}]))
    with pytest.raises(ValueError, match="scored 1 of 2 rows"):
        score(["loses_rows_in_a_test"], ["a", "b"], ["a", "b"], OPTIONS)


def test_means_of_nothing_are_zero():
    assert mean([]) == f1(0, 0) == 0
