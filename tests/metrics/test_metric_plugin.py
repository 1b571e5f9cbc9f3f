"""The plugin that docs/predict.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from llmforge.config.load import load_recipe
from llmforge.metrics.scores import score

PAGE = Path(__file__).parents[2] / "docs/predict.md"


def test_the_metric_of_the_docs_can_be_named_in_a_recipe(tmp_path):
    code = re.search(r"```python\n# same_length.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    (tmp_path / "same_length.py").write_text(code, encoding="utf-8")
    recipe_path = tmp_path / "recipe.yaml"
    recipe_path.write_text("plugins: [same_length.py]\nmetrics: [exact_match, same_length]\n", encoding="utf-8")
    recipe = load_recipe([str(recipe_path)], "show")
    scores = score(recipe.eval.metrics, ["ab", "a"], ["cd", "cd"], recipe.eval)
    assert scores.values == {"exact_match": 0.0, "exact_match_raw": 0.0, "same_length": 0.5}
