"""The card of a converted data set: a page of Markdown that says what is in it and where it came from."""

from __future__ import annotations

import json
from typing import Any

from llmforge.data.example import RowReport


def card(name: str, manifest: str, report: RowReport) -> str:
    """The card's text.

    Args:
        manifest: the data set's manifest as JSON text; sections that are not there are left out of the card.
        report: of the conversion.
    """
    stages: dict[str, Any] = json.loads(manifest)
    convert = stages["convert"]
    lines = [f"# {name}", "", "| file | rows |", "| --- | --- |"]
    files = {path.replace("\\", "/").rsplit("/", 1)[-1]: digest for path, digest in convert["files"].items()}
    lines += [f"| {file} | {rows} |" for file, rows in zip(files, convert["rows"].values(), strict=True)]
    lines += ["", f"Shape: {convert['shape']}. Rows in: {report.rows_in}; left out: {len(report.rejected)}."]
    lines += [f"- {count} x {reason}" for reason, count in report.reasons().items()]
    if made := stages.get("generate"):
        lines += [
            "",
            "## Made by",
            f"{_one_line(made.get('teacher', 'rules alone'))}; counts: {_one_line(made.get('counts', {}))}.",
        ]
    if review := stages.get("review"):
        lines += ["", "## Reviewed", f"{_one_line(review.get('states', {}))}"]
        if rate := review.get("error_rate"):
            lines.append(
                f"Checked {rate['checked']}, {rate['bad']} bad: error {rate['rate']:.1%}, "
                f"95 % interval {rate['low'] * 100:.1f}-{rate['high']:.1%}."
            )
    lines += ["", "## Sources", *[f"- {path}: sha256 {digest}" for path, digest in convert["sources"].items()]]
    lines += [f"- recipe {path}: sha256 {digest}" for path, digest in convert.get("recipe", {}).items()]
    lines += [
        "",
        "## Licence",
        "Not stated: answers of a teacher and copied pages carry their own terms; write them here.",
    ]
    lines += ["", "## Hashes", *[f"- {file}: sha256 {digest}" for file, digest in files.items()]]
    return "\n".join(lines) + "\n"


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one_line(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_one_line, value))
    return str(value)
