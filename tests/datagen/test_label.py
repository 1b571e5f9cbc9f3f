"""Labelling: most votes decide, ties are rejected by cause, known labels give a confusion matrix."""

from __future__ import annotations

import json
import random

import pytest
import scripted_teacher
from scripted_teacher import Script, serving

from llmforge.datagen.generate import generate
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import RecipeError

pytest.importorskip("openai")
RECIPE = """\
kind: dataset
name: triage
mode: label
label: {rows: rows.csv, field: text, labels: labels.yaml, votes: 3, gold: known}
teacher: {base_url: URL, model: m, patience_s: 5}
max_rejected: 1.0
"""
WORDS = {"fire": "smoke", "flood": "water", "other": "noise"}


@pytest.fixture
def job(tmp_path):
    rows = [(f"There is {word} at house {i}.", label) for i in range(7) for label, word in WORDS.items()][:20]
    text = "text,known\n" + "".join(f"{text},{label}\n" for text, label in rows)
    (tmp_path / "rows.csv").write_text(text)
    (tmp_path / "labels.yaml").write_text("fire: something burns\nflood: water where it should not be\nother:\n")

    def load(url, *words):
        (tmp_path / "label.yaml").write_text(RECIPE.replace("URL", url))
        return load_dataset_recipe([str(tmp_path / "label.yaml"), f"store.dir={tmp_path / 'work'}", *words])

    return load


@pytest.fixture
def reader(monkeypatch):
    """The scripted teacher reads the text and is wrong now and then, differently for every seed."""

    def answer(body, script, key):
        text = body["messages"][0]["content"].rpartition("Text:\n")[2]
        label = next(label for label, word in WORDS.items() if word in text)
        draw = random.Random(f"{body['seed']}")
        if draw.random() < script.bad:
            label = draw.choice(list(WORDS))
        return json.dumps({"clues": [WORDS[label]], "reason": "It says so.", "label": label}), "stop"

    monkeypatch.setattr(scripted_teacher, "answer", answer)


def test_twenty_rows_are_labelled_by_majority_with_a_confusion_matrix(job, reader):
    with serving(Script(bad=0.3)) as teacher:
        result = generate(job(teacher.url))
        assert len(teacher.script.requests) == 60
    matrix = result.counts["confusion"]
    assert sum(sum(row.values()) for row in matrix.values()) == 20
    assert sum(matrix[label].get(label, 0) for label in WORDS) >= 15
    for path in (result.folder / "ok").glob("*.json"):
        row = json.loads(path.read_text())
        votes = [vote["label"] for vote in row["out"]["votes"]]
        assert votes.count(row["output"]) >= 2
        assert row["out"]["agreement"] == round(votes.count(row["output"]) / 3, 4)
        assert row["instruction"] == "Choose the label of the text: fire, flood, other."


def test_without_a_majority_the_row_is_rejected_and_a_second_run_asks_nothing(job, reader):
    with serving(Script(bad=1.0)) as teacher:
        result = generate(job(teacher.url))
        again = generate(job(teacher.url))
        assert len(teacher.script.requests) == 60
    assert result.counts["causes"].keys() == {"no_majority"}
    assert result.counts["accepted"] + result.counts["rejected"] == 20
    assert again.counts == result.counts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("label.field=txt",), "no column 'txt'. Did you mean 'text'"),
        (("label.gold=text",), "is no label. Known: fire, flood, other"),
        (("label.labels=rows.csv",), "label.labels: no file|is no label"),
    ],
)
def test_wrong_columns_and_labels_are_said_before_asking(job, words, message):
    with serving(Script()) as teacher, pytest.raises(RecipeError, match=message):
        generate(job(teacher.url, *words))
