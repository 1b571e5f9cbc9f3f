"""One link of a chain, or one run of a sweep: what it does, whose model it takes, and the keys of its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.chain.gate import Bar
from llmforge.config.given import Given, Problem
from llmforge.config.load import load_sources
from llmforge.config.schema import Origin, Recipe
from llmforge.config.sources import Layer, Sources

COMMANDS = ("train", "predict", "export", "gate")
BY_NAME = {"predict": "predict", "eval": "predict", "export": "export", "gate": "gate"}  # else a link trains
WHOLE_MODEL = ("full", "freeze")
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
REWARDED = ("ppo", "grpo")  # stages that learn from rewards


@dataclass(frozen=True)
class Link:
    """A link before it runs.

    Attributes:
        folder: where its result goes.
        command: train, predict, export or gate.
        parent: the link whose model it takes; None when its keys name the model.
        reward: the link that trained its reward model.
        of, bars: for a gate: whose results it looks at, and the bars they must reach.
        layers: the keys of its recipe, the later winning over the earlier.
        origin: where it stands.
    """

    name: str
    folder: Path
    command: str
    origin: Origin | None = None
    parent: str | None = None
    reward: str | None = None
    of: str | None = None
    bars: tuple[Bar, ...] = ()
    layers: list[Layer] = field(default_factory=list)

    def gives(self, key: str) -> Any:
        """The value the link's keys give `key`, None when they do not."""
        values = [item.value for layer in self.layers for item in layer.given if item.key == key]
        return values[-1] if values else None


def resolve(link: Link, recipes: dict[str, Recipe], folders: dict[str, Path]) -> tuple[Recipe | None, list[Problem]]:
    """The link's recipe, or what is wrong with it.

    Before its parent has run the parent's base stands in for the parent's result, so that everything but the weights
    can be looked at.

    Args:
        recipes: those of earlier links.
        folders: name -> folder of earlier links.
    """
    origin = Origin(f"link {link.name}")
    own: dict[str, Any] = {("export_dir" if link.command == "export" else "output_dir"): str(link.folder)}
    command = link.command
    if link.parent is not None:
        before = recipes[link.parent]
        made = has_weights(folders[link.parent])
        own |= taken_from(before, folders[link.parent] if made else None)
        if link.gives("template") is None:
            own["template"] = before.data.template
        if link.command == "export" and not made:
            command = "show"  # there is nothing to merge yet; the keys can be judged all the same
    if link.reward is not None:
        own["reward_model"] = str(folders[link.reward])
    given = [Given(key, value, origin) for key, value in own.items()]
    sources = Sources(layers=[*link.layers, Layer(None, Path(), given)])
    return load_sources(sources, command)


def taken_from(parent: Recipe, folder: Path | None) -> dict[str, Any]:
    """Base and adapters of a link that goes on from the run of `parent` in `folder`, or from its base for None."""
    model, adapters = parent.model.model_name_or_path, parent.model.adapter_name_or_path
    if folder is None:
        return {"model_name_or_path": model, "adapter_name_or_path": list(adapters)}
    if parent.finetune.finetuning_type in WHOLE_MODEL:
        return {"model_name_or_path": str(folder), "adapter_name_or_path": []}
    below = adapters if parent.finetune.create_new_adapter else adapters[:-1]
    return {"model_name_or_path": model, "adapter_name_or_path": [*below, str(folder)]}


def has_weights(folder: Path) -> bool:
    """Whether a run has left its result there."""
    return any((folder / name).is_file() for name in WEIGHTS)
