"""One data set prepared: read, encoded, and for each example what a split and a mixture need to know.

Nothing is held but numbers: rows stream from the file through the encoder into flat arrays, on disk for all but small
files. A prepared set is found again by what it was made from (`data/cache.py`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmforge.config.names import FORMATS
from llmforge.data.cache import ArrayFile, Arrays, array_files, prepared_once
from llmforge.data.encode import VERSION, EncodeOptions, InMemory, Outcome, RowEncoder, encode_stream
from llmforge.data.encode_block import FlatRows
from llmforge.data.encode_groups import row_encoder
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import EncodedSet, Example, RowRef, RowReport
from llmforge.data.files import data_files
from llmforge.data.hub import hub_version
from llmforge.data.read import iter_examples
from llmforge.data.split import group_key, row_key
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.runs import sha256_file

SMALL = 64 * 1024  # bytes; smaller files are encoded in about the time that writing and finding a copy takes
ROWS = {"input_ids": "<i4", "labels": "<i4", "offsets": "<i8", "examples": "<i8"}
ORIGINS = {"prompts": "<u8", "groups": "<u8", "files": "<i4", "numbers": "<i8"}


@dataclass(frozen=True)
class Reading:
    """Which rows of an entry are read, and how."""

    entry: DatasetEntry
    stage: str
    max_samples: int | None = None
    seed: int = 42
    group_by: str | None = None

    def examples(self, report: RowReport) -> Iterator[Example]:
        return iter_examples(
            self.entry,
            report,
            stage=self.stage,
            max_samples=self.max_samples,
            seed=self.seed,
            group_by=self.group_by,
        )

    @cached_property
    def files(self) -> list[Path]:
        return data_files(self.entry.path) if self.entry.path else []

    @cached_property
    def names(self) -> list[str]:
        """What rows call the place they come from: the files, or the hub."""
        return [str(path) for path in self.files] or [self.entry.where]

    @cached_property
    def version(self) -> str | None:
        """What tells the content of a hub's data set from another; None for files, and where the hub does not say."""
        return hub_version(self.entry) if self.entry.hub else None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """File -> sha256."""
        return {str(path): sha256_file(path) for path in self.files}


@dataclass(frozen=True)
class Prepared:
    """One data set as the trainer needs it.

    Attributes:
        encoded: its rows; `encoded.examples` counts the usable rows of the file from 0, in their order.
        prompts, groups: (examples,) uint64, equal for equal prompts, and for examples that a split keeps together.
        read: what happened to the rows of the file.
        outcome: what happened to the examples in the encoder.
        folder: where it lies on disk; None when it was kept in memory. `made`: it was made just now.
    """

    reading: Reading
    encoded: EncodedSet
    prompts: np.ndarray
    groups: np.ndarray
    files: np.ndarray
    numbers: np.ndarray
    read: RowReport
    outcome: Outcome
    folder: Path | None
    made: bool

    @property
    def name(self) -> str:
        return self.reading.entry.name

    def source(self, example: int) -> RowRef:
        """Where an example stands."""
        name = self.reading.names[self.files[example]]
        return RowRef(name, int(self.numbers[example]))


def prepare(
    reading: Reading,
    template: Template,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    root: Path,
    *,
    overwrite: bool = False,
    keep_small: bool = False,
) -> Prepared:
    """Read and encode a data set, or find it as it was prepared before.

    Args:
        root: folder of prepared sets.
        overwrite: prepare anew.
        keep_small: write small sets to disk too.

    Raises:
        RecipeError: as `iter_examples` and `encode_examples`.
    """
    encoder = row_encoder(template, tokenizer, options)
    size = sum(path.stat().st_size for path in reading.files)
    is_small = bool(reading.files) and size < SMALL and not keep_small
    if is_small or (not reading.files and reading.version is None):
        return _in_memory(reading, encoder)
    folder = root / prepared_key(reading, template, tokenizer, options)

    def make(folder: Path) -> dict[str, Any]:
        report = RowReport(f"read {reading.entry.name}")
        with array_files(folder, ROWS) as rows, array_files(folder, ORIGINS) as origins:
            outcome = _encode(reading, encoder, report, _OnDisk(rows), origins)
        return {"read": _told(report, reading), "outcome": asdict(outcome)}

    try:
        arrays, about, made = prepared_once(folder, {**ROWS, **ORIGINS}, make, overwrite=overwrite)
    except OSError as error:
        prepared = _in_memory(reading, encoder)
        prepared.read.notes.append(f"no encoded copy was kept ({error})")
        return prepared
    return _prepared(arrays, _read_again(about["read"], reading), Outcome(**about["outcome"]), reading, folder, made)


def prepared_key(reading: Reading, template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> str:
    """sha256 of all that decides the rows; where the files lie does not."""
    entry = reading.entry
    said = {
        "version": VERSION,
        "files": [*reading.hashes.values(), *([reading.version] if reading.version else [])],
        "kinds": ["".join(path.suffixes) for path in reading.files],
        "entry": {**asdict(replace(entry, path=None)), "named": sorted(entry.named)},
        "format": _code_of(entry.formatting),
        "rows": [reading.stage, reading.max_samples, reading.group_by, reading.seed if entry.num_samples else None],
        "template": template.hash(),
        "tokenizer": [tokenizer.vocab_hash, tokenizer.bos_id, tokenizer.eos_id, *_tokenizer_files(tokenizer)],
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _code_of(formatting: str) -> str:
    """Hash of the file that reads the rows, which may be a user's plugin."""
    path = inspect.getsourcefile(FORMATS.get(formatting))
    return sha256_file(Path(path)) if path else formatting


def _tokenizer_files(tokenizer: Tokenizer) -> list[str]:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")  # the vocabulary alone is not all
    paths = [tokenizer.folder / name for name in names]
    return [f"{path.name} {sha256_file(path)}" for path in paths if path.is_file()]


class _OnDisk:
    """A sink that appends to files."""

    def __init__(self, files: dict[str, ArrayFile]):
        self.files, self.tokens = files, 0
        files["offsets"].append(np.zeros(1, np.int64))

    def add(self, rows: FlatRows, examples: np.ndarray) -> None:
        self.files["input_ids"].append(rows.input_ids)
        self.files["labels"].append(rows.labels)
        self.files["offsets"].append(self.tokens + np.cumsum(rows.lengths))
        self.files["examples"].append(examples)
        self.tokens += len(rows.input_ids)


class _Kept:
    """What ArrayFile is on disk, in memory."""

    def __init__(self, dtype: str):
        self.dtype, self.pieces = dtype, [np.zeros(0, dtype)]

    def append(self, values: np.ndarray) -> None:
        self.pieces.append(np.asarray(values, self.dtype))


def _in_memory(reading: Reading, encoder: RowEncoder) -> Prepared:
    report, sink = RowReport(f"read {reading.entry.name}"), InMemory()
    origins = {name: _Kept(dtype) for name, dtype in ORIGINS.items()}
    outcome = _encode(reading, encoder, report, sink, origins)
    encoded = sink.finish()
    arrays = {name: getattr(encoded, name) for name in ROWS}
    arrays |= {name: np.concatenate(kept.pieces) for name, kept in origins.items()}
    return _prepared(arrays, report, outcome, reading, None, True)


def _prepared(
    arrays: Arrays, read: RowReport, outcome: Outcome, reading: Reading, folder: Path | None, made: bool
) -> Prepared:
    encoded = EncodedSet(*(arrays[name] for name in ROWS))
    prompts, groups, files, numbers = (arrays[name] for name in ORIGINS)
    return Prepared(reading, encoded, prompts, groups, files, numbers, read, outcome, folder, made)


def _encode(reading: Reading, encoder: RowEncoder, report: RowReport, sink: Any, origins: Any) -> Outcome:
    """Stream the examples through the encoder, and note each one's origin on the way."""
    position = {name: number for number, name in enumerate(reading.names)}
    waiting: list[tuple[int, int, int, int]] = []

    def note() -> None:
        for name, column in zip(ORIGINS, zip(*waiting, strict=True), strict=False):
            origins[name].append(np.array(column, ORIGINS[name]))
        waiting.clear()

    def watched() -> Iterator[Example]:
        for example in reading.examples(report):
            prompt = row_key(example)
            group = prompt if example.group is None else group_key(example)
            waiting.append((prompt, group, position.get(example.source.file, 0), example.source.row))
            if len(waiting) == 4096:
                note()
            yield example

    outcome = encode_stream(watched(), encoder, sink)
    note()
    return outcome


def _told(report: RowReport, reading: Reading) -> dict[str, Any]:
    """A report with files as numbers, since the same content may lie elsewhere next time."""
    position = {name: number for number, name in enumerate(reading.names)}
    return {
        **asdict(report),
        "where": reading.entry.where,
        "rejected": [(position[source.file], source.row, reason) for source, reason in report.rejected],
        "fixed": [(position[source.file], source.row, what) for source, what in report.fixed],
    }


def _read_again(told: dict[str, Any], reading: Reading) -> RowReport:
    def rows(of: Sequence[Any]) -> list[tuple[RowRef, str]]:
        return [(RowRef(reading.names[file], row), text) for file, row, text in of]

    return RowReport(
        f"read {reading.entry.name}",
        told["rows_in"],
        told["rows_out"],
        rows(told["rejected"]),
        rows(told["fixed"]),
        [note.replace(told["where"], reading.entry.where) for note in told["notes"]],
    )
