"""Conversion: a table or the accepted rows of a data set become training files, an entry and a card.

Every row of the source is in a file or in the report with its reason; the same source gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmforge.data.example import RowRef, RowReport
from llmforge.data.files import data_files
from llmforge.data.formats.row import Rejected
from llmforge.datagen.card import card
from llmforge.datagen.expression import ExpressionError
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.manifest import recipe_facts, write_stage
from llmforge.datagen.mapping import Mapping
from llmforge.datagen.pointer import pointer_of, value_at
from llmforge.datagen.prompt import Prompt
from llmforge.datagen.register import add_entries, file_name_in, registry_path
from llmforge.datagen.review import Review
from llmforge.datagen.row_files import Row, read_files, write_jsonl
from llmforge.datagen.row_filter import RowFilter, cell
from llmforge.datagen.shapes import TrainingRow, answer_schema, entry_of, render
from llmforge.datagen.split_groups import read_split, split_groups
from llmforge.datagen.work import Work
from llmforge.errors import RecipeError
from llmforge.metrics.json_text import MISSING, canonical_json
from llmforge.runs import MANIFEST, atomic_write, sha256_file

ACCEPTED = {"instruction": "instruction", "input": "input", "output": "output"}  # the training row of a record


@dataclass(frozen=True)
class ConvertResult:
    """What was written: name -> file, rows of each, and what happened to every row."""

    files: dict[str, Path]
    rows: dict[str, int]
    report: RowReport
    registry: Path | None
    sources: dict[str, str] = field(default_factory=dict)  # file -> sha256

    def as_dict(self) -> dict[str, Any]:
        report = self.report.as_dict()
        return {
            "files": {name: str(path) for name, path in self.files.items()},
            "rows": self.rows,
            "registry": str(self.registry) if self.registry else None,
            **report,
            "reasons": self.report.reasons(),
        }


@dataclass(frozen=True)
class _Made:
    """A training row with the source row it was made of."""

    source: RowRef
    row: Row
    shaped: dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """A conversion with nothing written yet: what would stand where."""

    recipe: DatasetRecipe
    name: str
    folder: Path
    shape: str
    rows: dict[str, list[dict[str, Any]]]
    result: ConvertResult


def convert(recipe: DatasetRecipe, files: Sequence[Path] = ()) -> ConvertResult:
    """Convert a recipe's source: `files`, `convert.file`, or the accepted rows of its folder.

    Raises:
        RecipeError: a source, column, expression or split that is wrong. Nothing is written then.
    """
    conversion = plan_conversion(recipe, files)
    _write(conversion)
    return conversion.result


def plan_conversion(recipe: DatasetRecipe, files: Sequence[Path] = ()) -> Conversion:
    """All of `convert` but the writing.

    Raises:
        RecipeError: as `convert`.
    """
    config = recipe.convert
    if config.to and config.format and config.to != config.format:
        raise RecipeError(f"convert: to says {config.to}, format says {config.format}; leave one out")
    sizes, group_by = read_split(config.split)
    paths = [*files, *(Path(name) for name in config.file)]
    if not paths and recipe.name is None:
        raise RecipeError("data convert: no data file and no recipe with a name")
    name = recipe.name or paths[0].name.split(".")[0]
    report = RowReport(f"convert {name}")
    if paths:
        rows = list(read_files(paths, report, kind=config.from_, encoding=config.encoding))
    else:
        rows = _accepted(recipe, report)
        # Nothing of these was copied from a page, and `messages` of a record is what the teacher was asked.
        recipe = replace(recipe, convert=replace(config, html="keep", map=config.map or dict(ACCEPTED)))
    if not rows:
        what = ", ".join(map(str, paths)) if paths else f"{Work(recipe.folder).ok} (after review)"
        raise RecipeError(f"data convert: no rows in {what}")
    made, shape = _shape(recipe, rows, report)
    if not made:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in report.reasons().items())
        raise RecipeError(f"data convert: all {report.rows_in} rows were left out: {reasons}")
    parts = {name: list(range(len(made)))}
    if any(sizes.values()):
        groups = [_group(item, group_by or config.group) for item in made]
        parts = {f"{name}_{part}": at for part, at in split_groups(groups, sizes, recipe.seed, report.notes).items()}
    folder = _folder(recipe, bool(paths))
    written = {part: [made[i].shaped for i in positions] for part, positions in parts.items()}
    result = ConvertResult(
        {part: folder / f"{part}.jsonl" for part in parts},
        {part: len(positions) for part, positions in parts.items()},
        report,
        registry_path(recipe.register) if recipe.register else None,
        {str(file): sha256_file(file) for path in paths for file in (data_files(path) if path.is_dir() else [path])},
    )
    return Conversion(recipe, name, folder, shape, written, result)


def _accepted(recipe: DatasetRecipe, report: RowReport) -> list[tuple[RowRef, Row]]:
    """The accepted rows as reviewers left them; rejected ones go into the report."""
    review = Review.open(recipe)
    rows = []
    unreviewed = 0
    for item in sorted(review.items(), key=lambda item: item.made["index"]):
        report.rows_in += 1
        source = RowRef(str(Work(recipe.folder).ok / f"{item.id}.json"), 0)
        if item.state == "rejected":
            report.reject(source, f"rejected in review{': ' + item.reviewed.note if item.reviewed.note else ''}")
        elif item.state in ("pending", "skipped") and recipe.convert.unreviewed == "drop":
            report.reject(source, "not reviewed (unreviewed: drop)")
        else:
            unreviewed += item.state in ("pending", "skipped")
            if item.state == "edited":
                report.fix(source, f"edited in review by {item.reviewed.author}")
            rows.append((source, item.reviewed.row))
    if unreviewed:
        report.notes.append(f"{unreviewed} of {report.rows_in} rows were not reviewed")
    return rows


def _shape(recipe: DatasetRecipe, rows: list[tuple[RowRef, Row]], report: RowReport) -> tuple[list[_Made], str]:
    """Rows in their shape, in the source's order, and the shape's name."""
    config = recipe.convert
    tables = [row for _, row in rows]
    shape = config.to or config.format
    text = None
    if config.text is not None or shape == "text":
        if config.text is None or shape not in (None, "text"):
            raise RecipeError("convert.text: the Jinja text of a row goes with `to: text`")
        shape = "text"
        text = Prompt.of_text(config.text, frozenset(key for row in tables for key in row))
    mapping = None
    if text is None:
        schema = answer_schema(recipe.output_schema, recipe.row.get("output")) if recipe.output_schema else None
        if config.key_order == "schema" and schema is None:
            raise RecipeError("convert.key_order: schema needs output_schema")
        mapping = Mapping.read(config, tables, schema)
        report.notes += mapping.notes
    shape = shape or (mapping.shape if mapping else "text")
    shaped: list[tuple[RowRef, Row, TrainingRow]] = []
    for source, row in rows:
        try:
            if mapping:
                made, changes = mapping.row(row, source)
                for change in changes:
                    report.fix(source, change)
            else:
                assert text is not None
                filled = text.render({key: "" if value is None else value for key, value in row.items()})
                made = TrainingRow(text=filled.strip())
                if not made.text:
                    raise Rejected("the text is empty")
            shaped.append((source, row, made))
        except Rejected as reason:
            if not config.drop_empty:
                raise RecipeError(f"{source}: {reason} (drop_empty: false)") from None
            report.reject(source, str(reason))
    kept = _chosen(config.where, config.group, shaped, report)
    done = []
    for source, row, made in kept:
        try:
            done.append(_Made(source, row, render(made, shape)))
        except ValueError as reason:
            report.reject(source, str(reason))
    report.rows_out = len(done)
    place = {source: number for number, (source, _) in enumerate(rows)}
    report.rejected.sort(key=lambda item: place.get(item[0], -1))  # several passes rejected rows
    return done, shape


def _chosen(
    where: str | None, group: str | None, rows: list[tuple[RowRef, Row, TrainingRow]], report: RowReport
) -> list[tuple[RowRef, Row, TrainingRow]]:
    """Rows for which `where` holds, of each group the first."""
    condition = RowFilter.read(where, [row for _, row, _ in rows]) if where and rows else None
    kept = []
    first: dict[Any, RowRef] = {}
    for source, row, made in rows:
        try:
            if condition and not condition.holds(row):
                report.reject(source, f"where is false: {where}")
                continue
        except ExpressionError as error:
            report.reject(source, f"where has no value: {error}")
            continue
        if group:
            value = cell(row.get(group))
            key = value if isinstance(value, str) else canonical_json(value)
            if key in first:
                report.reject(source, f"another row with this {group} was taken")
                continue
            first[key] = source
        kept.append((source, row, made))
    return kept


def _group(item: _Made, group_by: str | None) -> str:
    """What keeps rows on one side of a split: a column or slot, or the question itself."""
    if group_by is None:
        asked = {key: value for key, value in item.shaped.items() if key not in ("output", "tools")}
        for key in ("messages", "conversations"):
            if key in asked:
                asked[key] = asked[key][:-1]
        return canonical_json(asked)
    for root in (item.row, item.row.get("slots")):
        value = value_at(root, pointer_of(group_by)) if root is not None else MISSING
        if value is not MISSING:
            return canonical_json(cell(value))
    raise RecipeError(f"convert.split: group_by: {item.source} has no {group_by!r}; it has {', '.join(item.row)}")


def _folder(recipe: DatasetRecipe, from_files: bool) -> Path:
    if recipe.convert.out:
        return Path(recipe.convert.out)
    if recipe.register:
        return registry_path(recipe.register).parent
    return recipe.folder if recipe.name or not from_files else Path()


def _write(made: Conversion) -> None:
    """Training files first, then the manifest and card, the registry last: what it names is there."""
    recipe, result, rows = made.recipe, made.result, made.rows
    shape, name, folder = made.shape, made.name, made.folder
    for part, path in result.files.items():
        write_jsonl(path, rows[part], ensure_ascii=recipe.convert.ensure_ascii)
    facts = {
        **recipe_facts(recipe),
        "sources": result.sources,
        "shape": shape,
        "rows_in": result.report.rows_in,
        "rows": result.rows,
        "left_out": result.report.reasons(),
        "changed": dict(Counter(what for _, what in result.report.fixed)),
        "files": {str(path): sha256_file(path) for path in result.files.values()},
    }
    if recipe.name:
        recipe.folder.mkdir(parents=True, exist_ok=True)
        if not result.sources:
            write_stage(recipe.folder, "review", Review.open(recipe).facts())
        write_stage(recipe.folder, "convert", facts)
        manifest = (recipe.folder / MANIFEST).read_text(encoding="utf-8")
    else:
        manifest = json.dumps({"convert": facts}, ensure_ascii=False, indent=1) + "\n"
    # Beside the files, under a name that no reader of folders takes for rows: training copies it into its own manifest.
    atomic_write(folder / f"_{name}.{MANIFEST}", manifest)
    atomic_write(folder / f"{name}.md", card(name, manifest, result.report))
    if recipe.register:
        entries = {
            part: {"file_name": file_name_in(recipe.register, path), **entry_of(shape, rows[part])}
            for part, path in result.files.items()
        }
        add_entries(recipe.register, entries)
