"""`sweep:` in a recipe: one run for every combination of values, and one table of what came out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmforge.chain.gate import LOWER_IS_BETTER, look_up
from llmforge.chain.link import Link
from llmforge.chain.run import Done
from llmforge.config.given import Given, Problem, refuse
from llmforge.config.keys import NESTED, flag_keys
from llmforge.config.sources import Layer, read_sources
from llmforge.config.yaml_text import shown

MOST_RUNS = 256
BESIDE = ("train_loss", "eval_loss")  # columns of the table besides the metric that decides


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep; `values` are those of each run, by its name."""

    folder: Path
    links: list[Link]
    values: dict[str, dict[str, Any]]
    metric: str
    files: list[str]
    greater_is_better: bool
    overwrite: bool = False


def read_sweep(words: Sequence[str]) -> Sweep:
    """Read a recipe with `sweep: {key: [values]}`.

    Raises:
        RecipeError: no output_dir, a key without values, too many runs; with file and line.
    """
    sources = read_sources(words, flag_keys(), (*NESTED, "sweep"))
    problems = list(sources.problems)
    swept: dict[str, Given] = {}
    layers: list[Layer] = []
    folder, overwrite, origin = None, False, None
    for layer in sources.layers:
        kept = []
        for item in layer.given:
            if item.key.startswith("sweep."):
                swept[item.key.removeprefix("sweep.")] = item
                origin = origin or item.origin
            elif item.key == "sweep" and isinstance(item.value, dict):  # given as one value, on the command line
                swept |= {key: Given(key, values, item.origin) for key, values in item.value.items()}
                origin = origin or item.origin
            elif item.key == "sweep":
                problems.append(Problem(item.origin, f"sweep: got {shown(item.value)}, expected {{key: [values]}}"))
            elif item.key == "output_dir":
                folder = str(item.value)
            elif item.key == "overwrite_output_dir":
                overwrite = item.value is True
            else:
                kept.append(item)
        layers.append(replace(layer, given=kept))
    for key, item in swept.items():
        if not isinstance(item.value, list) or not item.value:
            problems.append(Problem(item.origin, f"sweep.{key}: got {shown(item.value)}, expected a list of values"))
    if folder is None:
        problems.append(Problem(None, "output_dir: missing; each run gets a folder in it, for example runs/sweep"))
    if not swept and not problems:
        problems.append(Problem(origin, "sweep: names no key; write for example sweep: {learning_rate: [1e-5, 5e-5]}"))
    if not problems and (count := _product(swept)) > MOST_RUNS:
        problems.append(Problem(origin, f"sweep: {count} runs; at most {MOST_RUNS} are started"))
    if problems:
        raise refuse(sources.files, problems)
    links, values = [], {}
    for combination in itertools.product(*(item.value for item in swept.values())):
        chosen = dict(zip(swept, combination, strict=True))
        name = "_".join(f"{key}-{_spelled(value)}" for key, value in chosen.items())
        own = [Given(key, value, swept[key].origin) for key, value in chosen.items()]
        link_layers = [*layers, Layer(None, Path(), own)]
        links.append(
            Link(name, Path(str(folder)) / name, "train", next(iter(swept.values())).origin, layers=link_layers)
        )
        values[name] = chosen
    metric, greater = _metric(links[0])
    return Sweep(Path(str(folder)), links, values, metric, sources.files, greater, overwrite)


def _product(swept: dict[str, Given]) -> int:
    count = 1
    for item in swept.values():
        count *= len(item.value)
    return count


def _spelled(value: Any) -> str:
    """A value as part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "empty"


def _metric(link: Link) -> tuple[str, bool]:
    """What the table is sorted by, and whether more of it is better."""
    metric = str(link.gives("metric_for_best_model") or "eval_loss")
    said = link.gives("greater_is_better")
    return metric, bool(said) if said is not None else not LOWER_IS_BETTER.search(metric)


def table_of(sweep: Sweep, ended: Sequence[Done]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, the best run first; runs without the metric come last.

    Without evaluation rows the training loss decides.
    """
    rows = []
    measured = any(look_up(sweep.metric, done.metrics) is not None for done in ended)
    metric, greater = (sweep.metric, sweep.greater_is_better) if measured else ("train_loss", False)
    named = list(dict.fromkeys([metric, *BESIDE]))
    for done in ended:
        found = done.metrics if done.exit_code == 0 else {}
        numbers = [look_up(name, found) for name in named]
        state = "done" if done.exit_code == 0 else done.state
        rows.append([*sweep.values[done.link.name].values(), *numbers, state, str(done.link.folder)])
    columns = [*next(iter(sweep.values.values())), *named, "state", "folder"]
    place = columns.index(metric)
    sign = -1 if greater else 1
    rows.sort(key=lambda row: (row[place] is None, 0.0 if row[place] is None else sign * row[place]))
    kept = [i for i, name in enumerate(columns) if name not in named or any(row[i] is not None for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
