"""Whatever stands in a file, loading it ends in a recipe or in a message for its writer."""

import random
from pathlib import Path

import pytest

from llmforge.config import aliases
from llmforge.config.keys import keys
from llmforge.config.load import dump_recipe, load_recipe
from llmforge.config.training_arguments import HANDED_ON
from llmforge.errors import RecipeError

NAMES = [
    *keys(), *HANDED_ON, *aliases.RENAMED, *aliases.VALUES, *aliases.NOTED, *aliases.LATER, *aliases.REFUSED,
    "extends", "plugins", "launch", "model", "peft_config", "dist_config", "quant_config", "batching_strategy",
]  # fmt: skip
VALUES = [
    "1", "0", "-1", "true", "null", "no", "1e-4", "abc", "a, b", "[1, [2]]", "{a: {b: [c]}}", "''", "'${seed}'",
    "${lora_rank}", "'\\${x}'", "/x", "~", "~nobody/x", "./a", "[]", "{}", "auto", "lora", "[{file_name: a.json}]",
    '"\\ud83d"', '"\\0"', "2024-01-01", "!!int x", "&a b", "*a", "'}{'", "${", "'${}'", "'${launch.nproc}'",
    "[null]", "{1: 2}", "{true: 1}", "0x1f", "9" * 500, "1e999", "?", "|", "- -", "<<", "\t",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_random_recipes_load_or_are_refused(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(seed)
    for _ in range(60):
        lines = [f"{draw.choice(NAMES)}: {draw.choice(VALUES)}\n" for _ in range(draw.choice([1, 1, 2, 3]))]
        text = "".join(lines)
        if draw.random() < 0.2:
            at = draw.randrange(len(text))
            text = text[:at] + chr(draw.randrange(9, 0x250)) + text[at + 1 :]
        Path("r.yaml").write_text(text, encoding="utf-8")
        try:
            recipe = load_recipe(["r.yaml"], draw.choice(["train", "predict", "chat", "api", "show", "check"]))
        except RecipeError:
            continue
        Path("again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(["again.yaml"], "show").generate == recipe.generate, text
