"""One entry of dataset_info.json: its keys, their defaults, and the check of what a user wrote there.

The keys are LLaMA-Factory's (its data/README.md), plus `document` and the columns `replies` and `scores`. A typo is an
error, not a silent default; columns and tags that an entry does not name keep their defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llmforge.config.names import FORMATS
from llmforge.errors import RecipeError, nearest


@dataclass(frozen=True)
class Columns:
    """Which column of a file holds what; None: there is no such column."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    replies: str | None = None
    scores: str | None = None


@dataclass(frozen=True)
class Tags:
    """How a sharegpt message spells its role and content."""

    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: where its rows are and how to read them.

    `path` is a file or a folder of shards; `hub` is ("hf" | "ms", repository). Exactly one of them is set.
    `named` holds the columns and tags the entry itself names; the others are defaults. `inferred` is true for a bare
    file path, whose format is taken from its first row.
    """

    name: str
    path: Path | None = None
    hub: tuple[str, str] | None = None
    formatting: str = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    document: str = "line"
    columns: Columns = field(default_factory=Columns)
    tags: Tags = field(default_factory=Tags)
    named: frozenset[str] = frozenset()
    inferred: bool = False

    @property
    def where(self) -> str:
        """The file, folder or repository, for messages."""
        return f"{self.hub[0]}:{self.hub[1]}" if self.hub else str(self.path)


COLUMN_NAMES = tuple(f.name for f in fields(Columns))
TAG_NAMES = tuple(f.name for f in fields(Tags))
MEDIA = ("images", "videos", "audios")
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
SETTINGS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags", "document")
TOLERATED = ("_comment", "description", "file_sha1")  # seen in the wild, without effect on the rows
KNOWN = (*SOURCES, *SETTINGS, *TOLERATED)
REFUSED = {
    "script_url": "a loading script is remote code, which Forge does not run; convert it to files and use file_name",
    "cloud_file_name": "cloud storage is not read directly; download the file and use file_name",
    "om_hub_url": "the Modelers hub is not supported; download the files and use file_name",
}


def read_entry(name: str, value: Any, folder: Path, *, hub: str = "auto", beside_first: bool = True) -> DatasetEntry:
    """Check one entry; `file_name` is looked up in `folder`, for an inline entry in the working directory first.

    Raises:
        RecipeError: names the entry, the key, the value and what was expected.
    """
    where = f"dataset {name!r}"
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected an object, got {json.dumps(value, default=str)[:80]}")
    for key in value:
        if key not in KNOWN:
            raise RecipeError(f"{where}: no such key {key!r}.{nearest(key, KNOWN)} Known: {', '.join(KNOWN)}")
    given = {key: item for key, item in value.items() if item is not None}
    for key in (*SOURCES, "formatting", "subset", "split", "folder", "document"):
        if key in given and (not isinstance(given[key], str) or not given[key] or "\0" in given[key]):
            raise RecipeError(f"{where}: {key}: got {given[key]!r}, expected text")
    if not isinstance(given.get("ranking", False), bool):
        raise RecipeError(f"{where}: ranking: got {given['ranking']!r}, expected true or false")
    samples = given.get("num_samples", 1)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise RecipeError(f"{where}: num_samples: got {samples!r}, expected a whole number above 0")
    _choice(where, "formatting", given.get("formatting", "alpaca"), FORMATS)
    _choice(where, "document", given.get("document", "line"), ("line", "file"))
    columns = _mapping(where, "columns", given.get("columns", {}), COLUMN_NAMES)
    tags = _mapping(where, "tags", given.get("tags", {}), TAG_NAMES)
    return DatasetEntry(
        name=name,
        formatting=given.get("formatting", "alpaca"),
        ranking=given.get("ranking", False),
        subset=given.get("subset"),
        split=given.get("split", "train"),
        folder=given.get("folder"),
        num_samples=given.get("num_samples"),
        document=given.get("document", "line"),
        columns=Columns(**_merge(Columns(), columns)),
        tags=Tags(**_merge(Tags(), tags)),
        named=frozenset((*columns, *tags)),
        **_source(where, given, folder, hub, beside_first),
    )


def _source(where: str, given: dict[str, Any], folder: Path, hub: str, beside_first: bool) -> dict[str, Any]:
    """The one source that counts, in LLaMA-Factory's order: hub, script, cloud, file."""
    hubs = {"hf": given.get("hf_hub_url"), "ms": given.get("ms_hub_url")}
    order = ("ms", "hf") if hub == "modelscope" else ("hf", "ms")
    for kind in order:
        if hubs[kind]:
            return {"hub": (kind, hubs[kind])}
    if "file_name" in given and "script_url" not in given:
        for key, default in (("subset", None), ("folder", None), ("split", "train")):
            if given.get(key, default) != default:
                raise RecipeError(f"{where}: {key}: belongs to hub data sets; a file has none")
        beside, here = folder / given["file_name"], Path(given["file_name"])
        return {"path": here if not beside_first and here.exists() else beside}
    for key, reason in REFUSED.items():
        if key in given:
            raise RecipeError(f"{where}: {key}: {reason}")
    raise RecipeError(f"{where}: says nowhere where its rows are; give file_name, hf_hub_url or ms_hub_url")


def _mapping(where: str, key: str, value: Any, known: tuple[str, ...]) -> dict[str, str | None]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: {key}: got {value!r}, expected an object")
    for name, target in value.items():
        if name not in known:
            raise RecipeError(f"{where}: {key}: no such name {name!r}.{nearest(name, known)} Known: {', '.join(known)}")
        if target is not None and (not isinstance(target, str) or not target):
            raise RecipeError(f"{where}: {key}.{name}: got {target!r}, expected the name used in the file, or null")
    return dict(value)


def _merge(defaults: Columns | Tags, given: dict[str, str | None]) -> dict[str, str | None]:
    """Defaults for what is not named; a default whose column another name claims is dropped, never read twice."""
    claimed = {target for target in given.values() if target}
    merged = {f.name: getattr(defaults, f.name) for f in fields(defaults)}
    merged = {name: None if target in claimed else target for name, target in merged.items()}
    return {**merged, **given}


def _choice(where: str, key: str, value: str, known: Any) -> None:
    if value not in known:
        raise RecipeError(f"{where}: {key}: got {value!r}.{nearest(value, known)} Known: {', '.join(sorted(known))}")
