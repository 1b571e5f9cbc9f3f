"""`where:` of a conversion: an expression over a row's columns that may ask about rows with the same value.

`is_best == '1' or not any_best(title)` keeps the best reply of a title, or all when none is marked: any_NAME(COLUMN) is
true when some row with the same COLUMN has is_NAME set to 1, yes or true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmforge.datagen.expression import Expression, ExpressionError
from llmforge.datagen.row_files import Row
from llmforge.errors import RecipeError, nearest

ANY = re.compile(r"\bany_(\w+)\(\s*(\w+)\s*\)")
TRUE = ("1", "yes", "true", "是")


def cell(value: Any) -> Any:
    """A cell as conditions and groups see it: text without blanks around it, an empty cell as ""."""
    return value.strip() if isinstance(value, str) else "" if value is None else value


@dataclass
class RowFilter:
    """A condition, read and checked, with what its any_NAME(COLUMN) found in all rows."""

    text: str
    expression: Expression
    asked: list[tuple[str, str, str]]  # name in the expression, flag column, column of equal values
    true_groups: dict[str, set[Any]]

    @classmethod
    def read(cls, text: str, rows: Sequence[Row]) -> RowFilter:
        """Read a condition over the columns of `rows`; a column whose name is no word is row['its name'].

        Raises:
            RecipeError: no expression, or a column that is not there; lists those that are.
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        asked: list[tuple[str, str, str]] = []

        def named(match: re.Match[str]) -> str:
            flag, column = f"is_{match[1]}", match[2]
            for name in (flag, column):
                if name not in columns:
                    known = ", ".join(columns)
                    raise RecipeError(
                        f"convert.where: {match[0]}: no column {name!r}.{nearest(name, columns)} Present: {known}"
                    )
            name = f"any_{match[1]}_of_{column}"
            asked.append((name, flag, column))
            return name

        names = frozenset(c for c in columns if c.isidentifier()) | {"row"}
        plain = ANY.sub(named, text)
        try:
            expression = Expression.read(plain, names | {name for name, _, _ in asked})
        except ExpressionError as error:
            message = str(error).replace("is no slot", "is no column")
            raise RecipeError(f"convert.where: {message}") from None
        groups = {
            name: {cell(row.get(column)) for row in rows if str(cell(row.get(flag))).lower() in TRUE}
            for name, flag, column in asked
        }
        return cls(text, expression, asked, groups)

    def holds(self, row: Row) -> bool:
        """Whether the condition is true for this row.

        Raises:
            ExpressionError: it has no value for this row.
        """
        cells = {key: cell(value) for key, value in row.items()}
        values = {**cells, "row": cells}
        for name, _, column in self.asked:
            values[name] = cells.get(column, "") in self.true_groups[name]
        return bool(self.expression.value(values))
