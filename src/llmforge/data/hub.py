"""Rows of data sets on the Hugging Face hub or ModelScope, fetched by their own libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmforge.data.entry import DatasetEntry
from llmforge.errors import RecipeError, require


def read_hub_rows(entry: DatasetEntry) -> Iterator[tuple[int, Any]]:
    """(row number from 1, row) of the entry's subset and split; what was fetched before needs no network.

    Raises:
        RecipeError: as `open_hub`.
    """
    yield from enumerate(open_hub(entry), 1)


def hub_version(entry: DatasetEntry) -> str | None:
    """What the library calls the content of its copy, which changes when that does; None when it has no name for it.

    Raises:
        RecipeError: as `open_hub`.
    """
    rows = open_hub(entry)
    version = getattr(rows, "_fingerprint", None)  # of a datasets.Dataset: a hash of where its rows come from
    return str(version) if version else None


def open_hub(entry: DatasetEntry) -> Any:
    """The library's own rows of the entry, which can be iterated.

    Raises:
        RecipeError: the repository cannot be had, for any reason; says what to do instead.
    """
    assert entry.hub is not None
    kind, repository = entry.hub
    try:
        if kind == "ms":
            modelscope = require("modelscope", "modelscope", f"dataset {entry.name!r}: reading from ModelScope")
            rows = modelscope.MsDataset.load(
                repository, subset_name=entry.subset, split=entry.split, data_dir=entry.folder
            )
        else:
            import datasets  # seconds of import, so only here

            rows = datasets.load_dataset(repository, name=entry.subset, split=entry.split, data_dir=entry.folder)
    except RecipeError:
        raise
    except Exception as error:  # hub libraries raise a dozen classes for "not there", "no network" and "no such split"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hub = "ModelScope" if kind == "ms" else "Hugging Face"
        raise RecipeError(
            f"dataset {entry.name!r}: {repository} cannot be read from {hub} ({first_line}). "
            f"Without network, download its files and use file_name"
        ) from None
    return rows
