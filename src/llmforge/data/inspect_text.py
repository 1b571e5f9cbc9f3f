"""Findings on data sets as lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmforge.data.coverage import Coverage
from llmforge.data.inspect import Findings

ROWS = 8  # row numbers shown for each finding
LABELS = 12


def check_lines(found: Findings) -> list[str]:
    """What `data check` says about one data set."""
    report = found.report
    lines = [f"{found.name}: {report.rows_out:,} of {report.rows_in:,} rows are usable at stage {found.stage}"]
    for reason, count in report.reasons().items():
        rows = [source.row for source, why in report.rejected if why == reason]
        lines.append(f"  rejected {count:,}: {reason} ({_rows(rows)})")
    fixed: dict[str, list[int]] = {}
    for source, what in report.fixed:
        fixed.setdefault(what, []).append(source.row)
    lines += [f"  changed {len(rows):,}: {what} ({_rows(rows)})" for what, rows in fixed.items()]
    lines += [f"  note: {note}" for note in report.notes]
    double = found.duplicates
    if double["rows"]:
        lines.append(
            f"  duplicates: {double['rows']:,} rows say what an earlier one says ({_groups(double['groups'])})"
        )
    if double["conflicts"]:
        groups = _groups(double["conflict_groups"])
        lines.append(f"  conflicts: {double['conflicts']:,} questions have different answers ({groups})")
    if found.labels:
        lines.append(f"  labels: {_labels(found.labels)}")
    if found.lookups:
        share = len(found.lookups) / max(len(found.examples), 1)
        rows = [one["row"] for one in found.lookups]
        lines.append(
            f"  lookups: {len(found.lookups):,} answers ({share:.0%}) hold facts that their questions do not, such as "
            f"{found.lookups[0]['answer']!r} ({_rows(rows)}); such facts are for a table or a search, not for training"
        )
    lines += _length_lines(found.lengths)
    kinds: dict[str, list[int]] = {}
    for leak in found.leaks:
        kinds.setdefault(leak.kind, []).append(leak.row.row)
    lines += [
        f"  leakage: {len(rows):,} rows share a {kind} with training rows ({_rows(rows)})"
        for kind, rows in kinds.items()
    ]
    return lines


def stats_lines(found: Findings) -> list[str]:
    """What `data stats` says about one data set."""
    shape = found.shape
    turns = ", ".join(f"{count:,} x {number}" for number, count in shape["turns"].items())
    lines = [
        f"{found.name}: {len(found.examples):,} rows from {found.where}",
        f"  questions a row: {turns}",
        f"  characters: {_summary(shape['characters'])}",
        f"  answers: {_summary(shape['answer_characters'])} characters",
    ]
    having = [f"{shape[f'with_{what}']:,} with {what}" for what in ("system", "tools", "calls", "reasoning")]
    lines.append(f"  {', '.join(having)}")
    if found.labels:
        lines.append(f"  labels: {_labels(found.labels)}")
    return lines + _length_lines(found.lengths)


def coverage_lines(found: Coverage) -> list[str]:
    """What `data coverage` says."""
    lines = [f"{found.field}: {len(found.counts):,} values in {found.rows:,} rows, at least {found.minimum} wanted"]
    if found.missing:
        lines.append(f"  {found.missing:,} rows do not have it")
    width = max((len(value) for value in found.counts), default=0)
    for value, count in found.counts.items():
        lacks = f"  {found.gaps[value]:,} too few" if value in found.gaps else ""
        lines.append(f"  {value.ljust(width)}  {count:>7,}{lacks}")
    if found.unexpected:
        lines.append(f"  not expected: {', '.join(found.unexpected)}")
    if found.gaps:
        lines.append(f"{len(found.gaps):,} values have too few rows; {sum(found.gaps.values()):,} rows are missing")
    return lines


def _length_lines(lengths: dict[str, Any] | None) -> list[str]:
    if not lengths:
        return []
    lines = []
    if lengths["refused"]:
        first = lengths["refused"][0]
        rows = [one["row"] for one in lengths["refused"]]
        lines.append(f"  refused by the template {len(rows):,}: {first['reason']} ({_rows(rows)})")
    if lengths["rows"]:
        lines.append(f"  tokens: {_summary(lengths)}; {lengths['learned_share']:.0%} of them learned")
        if lengths["longer"]:
            lines.append(
                f"  longer than cutoff_len {lengths['cutoff_len']}: {lengths['longer']:,} rows, of which "
                f"{lengths['cut']:,} are cut and {lengths['rejected']:,} rejected (truncation: "
                f"{lengths['truncation']}); {lengths['cutoff_99']} tokens would hold 99% of the rows"
            )
    return lines


def _summary(told: dict[str, Any]) -> str:
    if not told["rows"]:
        return "none"
    return (
        f"{told['total']:,}, {told['mean']} a row (half below {told['p50']}, 95% below {told['p95']}, "
        f"longest {told['max']})"
    )


def _labels(labels: dict[str, int]) -> str:
    total = sum(labels.values())
    shown = [f"{label} {count:,} ({count / total:.0%})" for label, count in list(labels.items())[:LABELS]]
    more = len(labels) - LABELS
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:ROWS]))
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (f" and {len(rows) - ROWS} more" if len(rows) > ROWS else "")


def _groups(groups: Sequence[Sequence[int]]) -> str:
    return "; ".join(_rows(group) for group in groups[:3]) + (" ..." if len(groups) > 3 else "")
