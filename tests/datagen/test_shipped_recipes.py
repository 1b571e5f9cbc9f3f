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
