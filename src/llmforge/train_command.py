"""`forge-cli train`: train, and generate for the test set afterwards where the recipe says do_predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from llmforge.chain.command import run_chain, run_sweep
from llmforge.check import refuse_names
from llmforge.config.kind import recipe_kind
from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError

SEVERAL = {"chain": run_chain, "sweep": run_sweep}  # kinds of recipes that make several runs


def main(words: Sequence[str]) -> int:
    """Train as the words say, once or link by link; returns the exit code."""
    if (kind := recipe_kind(words)) in SEVERAL:
        return SEVERAL[kind](words)
    recipe = load_recipe(words, "train")
    if recipe.train.do_predict and not recipe.train.do_train:  # LLaMA-Factory's predict recipes are given to train
        from llmforge.eval.command import main as predict_only

        return predict_only(words)
    if int(os.environ.get("RANK", "0")) == 0:
        refuse_names(recipe)
        for note in recipe.notes:
            print(f"note: {note}", file=sys.stderr)
        what = f"{recipe.finetune.stage}, {recipe.finetune.finetuning_type}, {recipe.model.model_name_or_path}"
        print(f"check: recipe is well-formed ({what}); loading torch", file=sys.stderr, flush=True)
    if not recipe.train.do_train:
        raise RecipeError("do_train: false leaves nothing to train; use `forge-cli predict`, `chat` or `export`")

    from llmforge.train.launch import launch

    code = launch(words, recipe)
    if code or not recipe.train.do_predict or "RANK" in os.environ:
        return code

    from llmforge.eval.predict import predict

    result = predict(load_recipe([str(recipe.train.output_dir)], "predict"))
    print(result.path)
    return 0
