"""Self-instruct and rule templates: what is new is kept, every other task has its cause, in any order of answers."""

from __future__ import annotations

import json
import random

import pytest
import scripted_teacher
from scripted_teacher import Script, serving

from llmforge.datagen.generate import generate
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import GateError, RecipeError

pytest.importorskip("openai")
VERBS = ("Name", "Sort", "Explain", "Shorten", "Translate", "Count", "Compare", "Draw")
THINGS = ("flood gates", "two maps", "a radio call", "the crew list", "this road sign", "old bridges", "wind data")
ENDS = ("for a child", "in one line", "by height", "with reasons", "from memory", "as a table", "without numbers")
RECIPE = """\
kind: dataset
name: ideas
mode: selfinstruct
rows: 30
selfinstruct: {seeds: seeds.jsonl, seed_shots: 3, machine_shots: 2, tasks: 4, round: 4, blocked: [image]}
teacher: {base_url: URL, model: m, parallel: 4, patience_s: 5}
max_rejected: 1.0
"""


def thought_up(body, script, key):
    """Four tasks; some of them copies, blocked, echoing or too short."""
    draw = random.Random(key + str(body["seed"]))
    tasks = []
    for _ in range(4):
        task = {
            "instruction": f"{draw.choice(VERBS)} {draw.choice(THINGS)} {draw.choice(ENDS)}.",
            "input": f"case {draw.randint(0, 99)}",
            "output": f"answer {draw.randint(0, 99)}",
        }
        kind = draw.random()
        if kind < 0.1:
            task["input"] = task["output"]
        elif kind < 0.2:
            task["instruction"] += " Add an image of it."
        elif kind < 0.3:
            task["instruction"] = "Go."
        tasks.append(task)
    text = json.dumps({"tasks": tasks})
    return (text[: int(len(text) * 0.9)], "length") if draw.random() < script.bad else (text, "stop")


@pytest.fixture
def job(tmp_path, monkeypatch):
    seeds = [{"instruction": f"Write {i} words about rain number {i}", "output": "rain"} for i in range(6)]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds))
    monkeypatch.setattr(scripted_teacher, "answer", thought_up)

    def load(url, *words):
        (tmp_path / "ideas.yaml").write_text(RECIPE.replace("URL", url))
        return load_dataset_recipe([str(tmp_path / "ideas.yaml"), f"store.dir={tmp_path / 'work'}", *words])

    return load


def read(folder, kind="ok"):
    return [json.loads(path.read_text()) for path in sorted((folder / kind).glob("*.json"))]


def test_new_tasks_are_unlike_each_other_and_the_rest_has_a_cause(job):
    from llmforge.datagen.copies import rouge_l, units

    with serving(Script(bad=0.3)) as teacher:
        result = generate(job(teacher.url))
    rows = read(result.folder)
    assert len(rows) >= 30
    causes = {row["cause"] for row in read(result.folder, "rejected")}
    assert {"echo", "blocked", "length"} <= causes <= {"echo", "blocked", "length", "similar", "duplicate", "conflict"}
    assert all("image" not in row["instruction"] and row["input"] != row["output"] for row in rows)
    words = [units(row["instruction"]) for row in rows]
    assert max(rouge_l(a, b) for i, a in enumerate(words) for b in words[:i]) <= 0.7


def test_the_order_of_answers_does_not_matter(job, tmp_path):
    found = []
    for workers in (1, 8):
        with serving(Script(bad=0.2)) as teacher:
            words = (f"teacher.parallel={workers}", f"store.dir={tmp_path / str(workers)}")
            found.append(read(generate(job(teacher.url, *words)).folder))
    assert found[0] == found[1]


def test_a_second_run_asks_nothing(job):
    with serving(Script()) as teacher:
        generate(job(teacher.url))
        asked = len(teacher.script.requests)
        generate(job(teacher.url))
        assert len(teacher.script.requests) == asked


def test_a_teacher_without_ideas_is_not_asked_forever(job, monkeypatch):
    same = json.dumps({"tasks": [{"instruction": "Say what rain is made of", "input": "", "output": "water"}]})
    monkeypatch.setattr(scripted_teacher, "answer", lambda body, script, key: (same, "stop"))
    with serving(Script()) as teacher:
        with pytest.raises(GateError, match="3 rounds brought no new task"):
            generate(job(teacher.url))
        assert len(teacher.script.requests) <= 16


def test_rows_by_template_need_no_teacher(tmp_path):
    (tmp_path / "wordings.csv").write_text("ask\nWhat is the code of {name}?\nGive the code for {name}.\n")
    (tmp_path / "symbols.csv").write_text("name,code\nShelter,S1\nCordon line,L1\nDetour,L2\n")
    (tmp_path / "rules.yaml").write_text(
        "kind: dataset\nname: codes\nmode: rules\nslots:\n"
        "  symbol: {table: symbols.csv, pick: quota, per_value: 4}\n"
        "  wording: {table: wordings.csv, pick: quota}\n"
        "row: {instruction: \"{{ wording.ask | replace('{name}', symbol.name) }}\", output: '{code: symbol.code}'}\n"
        "checks: {line: \"symbol.code != 'S1'\"}\n"
    )
    recipe = load_dataset_recipe([str(tmp_path / "rules.yaml"), f"store.dir={tmp_path / 'work'}"])
    with pytest.raises(RecipeError, match=r"row\.output: 'code' is no slot"):
        generate(recipe)
    text = (tmp_path / "rules.yaml").read_text().replace("{code: symbol.code}", '{"code": symbol.code}')
    (tmp_path / "rules.yaml").write_text(text)
    result = generate(load_dataset_recipe([str(tmp_path / "rules.yaml"), f"store.dir={tmp_path / 'work'}"]))
    assert result.counts["accepted"] == 8
    assert result.counts["causes"] == {"check:line": 4}
    rows = read(result.folder)
    assert {(row["instruction"], row["output"]["code"]) for row in rows} <= {
        (ask.format(name=name), code)
        for ask in ("What is the code of {name}?", "Give the code for {name}.")
        for name, code in (("Cordon line", "L1"), ("Detour", "L2"))
    }
