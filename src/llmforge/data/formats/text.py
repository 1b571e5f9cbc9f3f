"""Plain text for stage pt: a line or a whole file of txt, or one column of a table."""

from __future__ import annotations

from llmforge.data.example import Example
from llmforge.data.formats.row import MissingColumn, Rejected, Row, RowContext


def read(row: Row, context: RowContext) -> Example:
    """The column `text`, or the one that `columns.prompt` names.

    Raises:
        Rejected: no such column, an empty text, a value that is no text.
    """
    named = context.entry.columns.prompt if "prompt" in context.entry.named else None
    column = named or "text"
    if column not in row:
        raise MissingColumn(column)
    text = context.text(row[column], f"column {column!r}")
    if not text.strip():
        raise Rejected("the text is empty")
    return Example((), context.source, text=text)
