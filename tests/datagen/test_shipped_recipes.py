"""Every recipe of recipes/data loads, makes its tasks, and shares no fact with what it was not given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from llmforge.datagen.answer import check_schema
from llmforge.datagen.budget import price_table
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.task import TaskMaker

pytest.importorskip("jsonschema")
REPO = Path(__file__).parents[2]


def test_the_report_line_recipe_makes_24_rows_two_of_each_symbol(monkeypatch):
    monkeypatch.chdir(REPO)
    maker = TaskMaker.of(load_dataset_recipe(["recipes/data/report_line.yaml"]))
    tasks = [maker.task(index) for index in range(maker.num_rows)]
    assert len(tasks) == len({task.id for task in tasks}) == 24
    assert set(Counter(task.slots["symbol"]["code"] for task in tasks).values()) == {2}
    assert [task.variant for task in tasks] == ["ns"] * 12 + ["ew"] * 12
    for task in tasks:
        maker.check_contradictions(task)
        report = f"At noon the {task.slots['symbol']['name_en']} was marked from {task.slots['place'][0]['name']} to "
        out = {
            "report": report + task.slots["place"][1]["name"],
            "symbol": {key: task.slots["symbol"][key] for key in ("name_en", "name_zh", "code", "inclusive")},
            "start": task.slots["place"][0]["name"],
            "end": task.slots["place"][1]["name"],
            "base_points": task.compute["base_points"],
            "end_point": task.compute["end_point"],
        }
        check_schema(out, task.schema)


def test_prices_carry_a_date_and_the_sums_of_the_first_table():
    prices = price_table()
    assert {price.date for price in prices.values()} == {"2024-05-01"}
    fifty_rows = {name: round(50 * price.cost(800, 400), 4) for name, price in prices.items()}
    assert fifty_rows["gpt-4-turbo-preview"] == 1.00
    assert fifty_rows["gpt-4"] == 2.40
    assert fifty_rows["gpt-4-32k"] == 4.80
    assert fifty_rows["gpt-3.5-turbo-0125"] == 0.05
    assert fifty_rows["gpt-3.5-turbo-instruct"] == 0.10


def test_the_report_label_recipe_knows_every_label_of_its_rows(monkeypatch, tmp_path):
    from scripted_teacher import Script, serving

    from llmforge.datagen.generate import generate

    pytest.importorskip("openai")
    monkeypatch.chdir(REPO)
    with serving(Script()) as teacher:
        words = [f"teacher.base_url={teacher.url}", f"store.dir={tmp_path}", "max_rejected=1"]
        result = generate(load_dataset_recipe(["recipes/data/report_label.yaml", *words]), preview=8)
    assert result.counts["rows"] == 8
    assert sum(sum(row.values()) for row in result.counts["confusion"].values()) == 8


def test_the_commands_of_the_page_run(monkeypatch, tmp_path, capsys):
    import re
    import shlex

    from scripted_teacher import Script, serving

    from llmforge.cli import main

    pytest.importorskip("openai")
    monkeypatch.chdir(REPO)
    text = (REPO / "docs/data_generate.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("forge-cli ")]
    assert len(commands) == 5
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    for number, words in enumerate(commands):
        with serving(Script(words=20)) as teacher:
            instead = [f"teacher.base_url={teacher.url}", f"store.dir={tmp_path / str(number)}", "max_rejected=1"]
            assert main([*words, *instead]) == 0
    assert "USD" in capsys.readouterr().out
