"""The words behind a step over rows (`data convert`, `clean`, `dedupe`, ...): a recipe, data files, the step's keys.

`forge-cli data clean chats.jsonl --min_chars 20` and a recipe with `clean: {min_chars: 20}` say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmforge.data.files import kind_of
from llmforge.datagen.keys import GROUPS, DatasetRecipe
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import RecipeError

RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class StepWords:
    """What a step was told: its recipe (all defaults without one), data files, how to answer, and further options."""

    recipe: DatasetRecipe
    files: list[Path]
    as_json: bool
    actions: dict[str, str]


def read_step(
    words: Sequence[str], group: str, usage: str, actions: Sequence[str] = (), switches: Sequence[str] = ()
) -> StepWords:
    """Read the words behind `data <step>`.

    Args:
        words: a recipe of `kind: dataset`, data files, `--key value` of the step's group, `--json`.
        group: the group of the recipe that holds the step's keys.
        usage: told with a word that fits nowhere.
        actions: further options with a value that are no keys of the recipe.
        switches: further options that stand alone.

    Raises:
        RecipeError: everything that is wrong with the words and the recipe.
    """
    own = {field.name.removesuffix("_") for field in dataclasses.fields(GROUPS[group])}
    flags = {f.name for f in dataclasses.fields(GROUPS[group]) if f.type in (bool, "bool")}
    rest, files, handed_on = list(words), [], []
    said: dict[str, str] = {}
    as_json = False
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        is_key = word.startswith("--") or (has_value and key.replace(".", "").isidentifier())
        if word == "--json":
            as_json = True
        elif not is_key:
            path = Path(word).expanduser()
            if path.suffix.lower() in RECIPES:
                handed_on.append(word)
            elif path.exists() or kind_of(path):
                files.append(path)
            else:
                raise RecipeError(f"{word!r} is neither a recipe (.yaml) nor a data file\n{usage}")
        else:
            if not has_value:
                if key in switches or (key in flags and (not rest or rest[0] not in ("true", "false"))):
                    value = "true"
                elif not rest or rest[0].startswith("--"):
                    raise RecipeError(f"{word} needs a value: {word} VALUE\n{usage}")
                else:
                    value = rest.pop(0)
            if key in actions or key in switches:
                said[key] = value
            else:
                handed_on.append(f"{group}.{key}={value}" if key in own else f"{key}={value}")
    for path in files:
        if not path.exists():
            raise RecipeError(f"{path}: no such file")
    return StepWords(load_dataset_recipe(handed_on, group), files, as_json, said)
