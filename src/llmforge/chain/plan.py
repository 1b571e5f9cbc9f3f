"""From the words behind `train` to the links of a chain: read, joined, and checked as far as names go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.chain.gate import Bar
from llmforge.chain.link import BY_NAME, COMMANDS, REWARDED, Link
from llmforge.config.given import Given, Problem, refuse
from llmforge.config.keys import NESTED, flag_keys
from llmforge.config.sources import Layer, Sources, read_sources
from llmforge.config.yaml_text import shown
from llmforge.errors import RecipeError, nearest

OF_LINKS = ("command", "from", "extends", "of", "bars")  # keys that say what a link is; all others are its recipe's
OF_MODEL = ("model_name_or_path", "adapter_name_or_path")
OF_CHAIN = ("output_dir", "overwrite_output_dir")
NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True)
class Chain:
    """Links in their order, the folder that holds theirs, the files they were read from, and what is wrong with them.

    Links with problems stand there all the same, so that the check can name everything at once.
    """

    folder: Path
    links: list[Link]
    files: list[str]
    overwrite: bool = False
    problems: tuple[Problem, ...] = ()


def read_chain(words: Sequence[str]) -> Chain:
    """Read a recipe with `chain:`.

    Raises:
        RecipeError: there are no links, or no folder for them; with file and line.
    """
    sources = read_sources(words, flag_keys(), (*NESTED, "chain", "chain.*"))
    reader = _Reader(sources)
    if not sources.problems:
        reader.read()
    if not reader.links or reader.folder is None:
        raise refuse(sources.files, reader.problems)
    return Chain(Path(reader.folder), reader.links, sources.files, reader.overwrite, tuple(reader.problems))


class _Reader:
    """The links as they come together; `problems` gather."""

    def __init__(self, sources: Sources):
        self.sources = sources
        self.problems = list(sources.problems)
        self.links: list[Link] = []
        self.folder: str | None = None
        self.overwrite = False

    def problem(self, item: Given | None, message: str) -> None:
        self.problems.append(Problem(item.origin if item else None, message))

    def fault(self, link: Link, item: Given | None, message: str) -> None:
        self.problems.append(Problem(item.origin if item else link.origin, f"link {link.name}: {message}"))

    def read(self) -> None:
        shared = [self._shared(layer) for layer in self.sources.layers]
        own: dict[str, list[Layer]] = {}
        heads: dict[str, Given] = {}
        for layer in self.sources.layers:
            self._collect(layer, own, heads)
        if self.folder is None:
            self.problem(None, "output_dir: missing; each link gets a folder in it, for example output_dir: runs/chain")
        if not heads:
            self.problem(None, "chain: has no links; a link is `name: {keys}`")
        for name, head in heads.items():
            self._link(name, head, shared, own[name])

    def _shared(self, layer: Layer) -> Layer:
        """The keys of a file that all links have."""
        kept = []
        for item in layer.given:
            if item.key == "output_dir":
                self.folder = str(item.value)
            elif item.key == "overwrite_output_dir":
                self.overwrite = item.value is True
            elif item.key == "sweep" or item.key.startswith("sweep."):
                self.problem(item, "sweep: a chain is not swept; give a link its values, or sweep one stage")
            elif item.key != "chain" and not item.key.startswith("chain."):
                kept.append(item)
        return Layer(layer.file, layer.folder, kept)

    def _collect(self, layer: Layer, own: dict[str, list[Layer]], heads: dict[str, Given]) -> None:
        """Sort a file's `chain.NAME.KEY` by their links."""
        mine: dict[str, list[Given]] = {}
        for item in layer.given:
            if item.key == "chain":
                self.problem(item, f"chain: got {shown(item.value)}, expected links, `name: {{keys}}`")
            if not item.key.startswith("chain."):
                continue
            name, _, key = item.key.removeprefix("chain.").partition(".")
            if not name or set(name) - NAME_CHARACTERS:
                self.problem(item, f"chain: {name!r} is no name of a link; letters, digits, _ and - are taken")
                continue
            if not key and item.value is not None:
                self.problem(item, f"link {name}: got {shown(item.value)}, expected a mapping of keys")
                continue
            heads.setdefault(name, item)
            mine.setdefault(name, [])
            if key in OF_CHAIN or key == "export_dir":
                self.problem(item, f"link {name}: {key}: a link's folder is output_dir/{name}")
            elif key:
                mine[name].append(Given(key, item.value, item.origin, item.text))
        for name, items in mine.items():
            own.setdefault(name, []).append(Layer(layer.file, layer.folder, items))

    def _link(self, name: str, head: Given, shared: list[Layer], own: list[Layer]) -> None:
        said = {item.key: item for layer in own for item in layer.given if item.key in OF_LINKS}
        layers = [
            *(self._extended(name, said["extends"]) if "extends" in said else []),
            *(layer for layer in shared if layer.file),
            *(_without(layer, OF_LINKS) for layer in own if layer.file),
            *(layer for layer in shared if not layer.file),
            *(_without(layer, OF_LINKS) for layer in own if not layer.file),
        ]
        command = BY_NAME.get(name, "train")
        if "command" in said and said["command"].value not in COMMANDS:
            given, known = said["command"].value, ", ".join(COMMANDS)
            message = f"command: got {shown(given)}, expected one of {known}.{nearest(given, COMMANDS)}"
            self.problem(said["command"], f"link {name}: {message}")
        elif "command" in said:
            command = said["command"].value
        link = Link(name, Path(self.folder or ".") / name, command, head.origin, layers=layers)
        self.links.append(self._gate(link, said, own) if command == "gate" else self._taking(link, said, own))

    def _gate(self, link: Link, said: dict[str, Given], own: list[Layer]) -> Link:
        for layer in own:
            for item in layer.given:
                if item.key not in ("command", "of", "bars"):
                    self.fault(link, item, f"{item.key}: a gate has `of` and `bars` only")
        results = [before.name for before in self.links if before.command in ("train", "predict")]
        of = self._named(link, said.get("of"), results, "of", results[-1] if results else None)
        bars: list[Bar] = []
        given = said.get("bars")
        if given is None or not isinstance(given.value, dict) or not given.value:
            self.fault(link, given, "bars: expected metrics, such as {exact_match: 0.8}")
            return link
        for metric, value in given.value.items():
            try:
                bars.append(Bar.read(str(metric), value))
            except RecipeError as error:
                self.fault(link, given, f"bars: {error}")
        return Link(link.name, link.folder, "gate", link.origin, of=of, bars=tuple(bars))

    def _taking(self, link: Link, said: dict[str, Given], own: list[Layer]) -> Link:
        """The link with the links whose models it takes."""
        for key in ("of", "bars"):
            if key in said:
                self.fault(link, said[key], f"{key}: only a gate has it; write command: gate")
        policies = [before.name for before in self.links if before.command == "train" and _stage(before) != "rm"]
        names_own = [item for layer in own for item in layer.given if item.key in OF_MODEL]
        default = policies[-1] if policies and not names_own else None
        if "from" in said and said["from"].value is None:
            parent = None
        else:
            trained = [before.name for before in self.links if before.command == "train"]
            parent = self._named(link, said.get("from"), trained, "from", default)
        if names_own and parent is not None:
            self.fault(link, names_own[0], f"{names_own[0].key}: `from: {parent}` says it; keep one of them")
        if link.command in ("predict", "export") and parent is None and not names_own and not policies:
            self.fault(link, None, f"{link.command} needs a link that trained before it")
        rewards = [before.name for before in self.links if _stage(before) == "rm"]
        rewarded = link.command == "train" and _stage(link) in REWARDED
        silent = all(item.key != "reward_model" for layer in link.layers for item in layer.given)
        reward = rewards[-1] if rewarded and silent and rewards else None
        return Link(link.name, link.folder, link.command, link.origin, parent, reward, layers=link.layers)

    def _named(self, link: Link, item: Given | None, known: list[str], key: str, default: str | None) -> str | None:
        """The earlier link that `key` names."""
        if item is None:
            if key == "of" and default is None:
                self.fault(link, None, "there is nothing before it to measure")
            return default
        if item.value not in known:
            there = f"Known: {', '.join(known)}" if known else "There is none before it"
            self.fault(link, item, f"{key}: {item.value!r} is no such link.{nearest(item.value, known)} {there}")
            return default
        return str(item.value)

    def _extended(self, name: str, item: Given) -> list[Layer]:
        """The layers of the recipes that a link extends."""
        found: list[Layer] = []
        for file in item.value if isinstance(item.value, list) else [item.value]:
            beside = Path(item.origin.file).parent if item.origin.file else Path()
            try:
                sources = read_sources([os.path.normpath(beside / str(file))])
            except RecipeError as error:
                self.problem(item, f"link {name}: extends: {error}")
                continue
            self.problems += sources.problems
            found += [_without(layer, OF_CHAIN) for layer in sources.layers if layer.file]
        return found


def _stage(link: Link) -> Any:
    return link.gives("stage") if link.command == "train" else None


def _without(layer: Layer, names: Sequence[str]) -> Layer:
    return Layer(layer.file, layer.folder, [item for item in layer.given if item.key not in names])
