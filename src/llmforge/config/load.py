"""From the words behind a command to a checked `Recipe`: read, translate, merge, interpolate, check. No torch.

All problems are collected and raised together, so that one look at the message is enough to repair a recipe.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge.config import files, from_run
from llmforge.config.dump import dump_recipe
from llmforge.config.given import Given, Problem, refuse
from llmforge.config.interpolate import interpolate
from llmforge.config.keys import GROUPS, flag_keys, keys
from llmforge.config.plugins import load_plugin
from llmforge.config.rules import View, broken_rules
from llmforge.config.schema import Origin, Recipe
from llmforge.config.sources import Sources, read_sources
from llmforge.config.training_arguments import HANDED_ON, hint_of, is_secret
from llmforge.config.translate import merged, translate
from llmforge.config.v1 import from_v1, is_v1
from llmforge.config.values import check, convert, optional
from llmforge.config.yaml_text import shown
from llmforge.errors import ForgeError

__all__ = ["dump_recipe", "load_recipe"]

FLAGS = {"chat": ("--prompt", "--system", "--compare"), "predict": ("--json",)}  # what commands read besides keys
SECRETS_FROM = {"api_key": "FORGE_API_KEY", "hf_hub_token": "HF_TOKEN", "ms_hub_token": "MODELSCOPE_API_TOKEN"}


def load_recipe(words: Sequence[str], command: str = "train") -> Recipe:
    """Read and check the recipe that stands behind a command.

    Args:
        words: recipe files, or a run folder, then `key=value` or `--key value`.
        command: which command asks; it decides which keys must be there. "show" asks for none, "check" for those of
            the command that the recipe is meant for.

    Raises:
        RecipeError: everything that is wrong with the recipe, with file and line.
    """
    sources = read_sources(words, flag_keys())
    recipe, problems = load_sources(sources, command)
    if recipe is None:
        raise refuse(sources.files, problems)
    return recipe


def load_sources(sources: Sources, command: str) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that was read, or None and everything that is wrong with it."""
    loading = _Loading(sources, command)
    if not sources.problems:  # a file that could not be read whole would only bring follow-up errors
        loading.finish()
    return (None if loading.problems else loading.recipe()), loading.problems


class _Loading:
    """A recipe on its way; `problems` and `notes` gather what each step finds."""

    def __init__(self, sources: Sources, command: str):
        self.sources, self.command = sources, command
        self.given: dict[str, Given] = {}
        self.later: list[Given] = []
        self.values: dict[str, Any] = {}
        self.hf: dict[str, Any] = {}
        self.wrong: set[str] = set()
        self.problems: list[Problem] = list(sources.problems)
        self.notes: list[str] = []
        for layer in sources.layers:
            items = layer.given
            if layer.file and is_v1(items):
                items, notes, problems = from_v1(items)
                self.notes += notes
                self.problems += problems
            self._merge(items)
        if command == "check":
            self.command = _command_of(self.given)

    def _merge(self, items: list[Given]) -> None:
        layer = translate(items, FLAGS.get(self.command, ()))
        self.problems += layer.problems
        self.notes += layer.notes
        self.later += layer.later
        for key, item in layer.given.items():
            before = self.given.get(key)
            if before and isinstance(before.value, dict) and isinstance(item.value, dict):
                item = Given(key, merged(before.value, item.value), item.origin)
            self.given[key] = item

    def finish(self) -> None:
        """The steps after reading, in their order."""
        from_run.apply_run(self.sources, self.given, self.command)
        self.given, problems = interpolate(self.given)
        self.problems += problems
        self._run_plugins()
        self._convert()
        found = files.find_all(self.values, self.given, self.command)
        self.problems += found.problems
        self.notes += found.notes
        self.wrong |= found.wrong
        self._read_manifest()
        self._secrets()
        self._only_predict()
        self._rules()

    def _run_plugins(self) -> None:
        item = self.given.get("plugins")
        if item is None:
            return
        names, problems = files.plugin_files(item)
        self.problems += problems
        for name in names:
            try:
                load_plugin(name)
            except ForgeError as error:
                self.problems.append(Problem(item.origin, f"plugins: {error}"))
        self.values["plugins"] = tuple(names)

    def _convert(self) -> None:
        for name, item in self.given.items():
            key = keys().get(name)
            hint = key.type if key else hint_of(name) if name in HANDED_ON else None
            if hint is None or (item.value is None and not optional(hint)):
                continue  # null sets a key back to its default
            secret = key.rule.secret if key else is_secret(name)
            try:
                value = convert(item.value, hint, item.text)
                if item.value is False and key and key.choices and "no" in key.choices:
                    value = "no"  # `eval_strategy: false`
            except ValueError as error:
                got = "a value of another kind" if secret else shown(item.value)
                self._problem(name, f"got {got}, expected {error}")
                continue
            if key and (message := check(value, key.rule, hint, key.choices, item.value)):
                self._problem(name, message)
            elif key:
                self.values[name] = value
            elif value is not None:
                self.hf[name] = value

    def _problem(self, key: str, message: str) -> None:
        self.wrong.add(key)
        self.problems.append(Problem(self.given[key].origin, f"{key}: {message}"))

    def _read_manifest(self) -> None:
        """Base model and template from what lies beside an adapter, where the recipe is silent."""
        for key, item in from_run.from_manifest(self.values, self.given).items():
            self.given[key] = item
            self.values[key] = item.value

    def _secrets(self) -> None:
        for key, variable in SECRETS_FROM.items():
            if not self.values.get(key) and os.environ.get(variable):
                self.values[key] = os.environ[variable]
                self.given[key] = Given(key, None, Origin(f"environment {variable}"))

    def _only_predict(self) -> None:
        """LLaMA-Factory's predict and eval recipes leave do_train out, where it is false by default."""
        asked = [name for name in ("do_predict", "do_eval") if self.values.get(name)]
        if asked and "do_train" not in self.given:
            self.values["do_train"] = False
            if self.command == "train":
                self.notes.append(
                    f"{asked[0]} is given and do_train is not: nothing is trained; say do_train: true for both"
                )

    def _rules(self) -> None:
        defaults: dict[str, Any] = {name: key.default for name, key in keys().items()}
        said = self._said()
        view = View(defaults | self.hf | self.values, frozenset(said), self.command)
        problems, notes = broken_rules(view, {k: g.origin for k, g in self.given.items()}, frozenset(self.wrong))
        self.problems += problems
        self.notes += notes
        self.notes += _stage_notes(said, self.later, view.stage, self.command)

    def _said(self) -> dict[str, Given]:
        """Keys that somebody chose. A run's own recipe.yaml holds every key, so there it means nothing that they are
        written."""
        own = str(Path(self.sources.run_dir, "recipe.yaml")) if self.sources.run_dir else None
        return {name: item for name, item in self.given.items() if own is None or item.origin.file != own}

    def recipe(self) -> Recipe:
        """The values in their groups; keys that were not given keep their defaults."""
        groups = {
            group: cls(
                **{k.field: self.values[k.name] for k in keys().values() if k.group == group and k.name in self.values}
            )
            for group, cls in GROUPS.items()
        }
        return Recipe(
            **groups,
            hf=self.hf,
            plugins=self.values.get("plugins", ()),
            origins={name: item.origin for name, item in self.given.items()},
            notes=tuple(dict.fromkeys(self.notes)),
            run_dir=self.sources.run_dir,
        )


def _command_of(given: dict[str, Given]) -> str:
    """The command a recipe is meant for, by what it says; `recipe check` asks."""
    if "export_dir" in given and "output_dir" not in given:
        return "export"
    if given.keys() & {"dataset", "stage", "do_train", "do_predict", "learning_rate"}:
        return "train"
    return "predict" if "eval_dataset" in given else "chat"


def _stage_notes(given: dict[str, Given], later: list[Given], stage: str, command: str) -> list[str]:
    """Keys that another stage reads; known, and so allowed, but said."""
    from llmforge.config.aliases import LATER

    if command != "train":
        return []
    elsewhere = [(item, sorted(LATER[item.key])) for item in later if stage not in LATER[item.key]]
    for name, item in given.items():
        stages = keys()[name].rule.stages if name in keys() else frozenset()
        if stages and stage not in stages and item.value != keys()[name].default:  # a run's own recipe holds every key
            elsewhere.append((item, sorted(stages)))
    return [
        f"{item.origin.text}: {item.key}: only for stage {' or '.join(s)}; no effect with {stage}"
        for item, s in elsewhere
    ]
