"""Which column of a source is which part of a training row: `map:`, or what the rows look like without one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmforge.config.names import FORMATS
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import Example, RowRef
from llmforge.data.formats.row import Rejected, RowContext
from llmforge.data.recognise import recognise
from llmforge.datagen.html_text import to_text
from llmforge.datagen.row_files import Row
from llmforge.datagen.shapes import TrainingRow, ordered, pair
from llmforge.datagen.step_keys import ConvertConfig
from llmforge.errors import RecipeError, nearest
from llmforge.metrics.json_text import parse_json

PARTS = ("system", "user", "instruction", "input", "assistant", "output", "messages", "tools")
PROMPTS, REPLIES = ("user", "instruction"), ("assistant", "output")
Changes = list[str]


@dataclass(frozen=True)
class Mapping:
    """A checked `map:`; `columns` are all that it and append_question read."""

    config: ConvertConfig
    parts: dict[str, str]
    schema: dict[str, Any] | None = None
    recognised: DatasetEntry | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, config: ConvertConfig, rows: Sequence[Row], schema: dict[str, Any] | None = None) -> Mapping:
        """Check `map:` against the columns of `rows`; without one, recognise alpaca columns or messages.

        Raises:
            RecipeError: a part that does not exist or is missing, one column in two parts, a column that is not there.
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        parts = dict(config.map)
        for part, column in parts.items():
            if part not in PARTS:
                raise RecipeError(
                    f"convert.map: no such part {part!r}.{nearest(part, PARTS)} Known: {', '.join(PARTS)}"
                )
            if not isinstance(column, str):
                raise RecipeError(f"convert.map: {part}: got {column!r}, expected one column")
        question = [] if config.append_question == "never" else [config.question]
        for column in (*parts.values(), *question, *([config.group] if config.group else [])):
            if column not in columns:
                raise RecipeError(
                    f"convert.map: no column {column!r}.{nearest(column, columns)} Present: {', '.join(columns)}"
                )
        if not parts or "messages" in parts:
            return cls._recognised(config, parts, rows, schema)
        for kind, names in (("the user's text", PROMPTS), ("the reply", REPLIES)):
            given = [name for name in names if name in parts]
            if len(given) != 1:
                what = f"{' and '.join(given)} both map it" if given else f"no column is {' or '.join(names)}"
                raise RecipeError(f"convert.map: {kind}: {what}")
        for column in parts.values():
            twice = [other for other, its in parts.items() if its == column]
            if len(twice) > 1:
                raise RecipeError(
                    f"convert.map: column {column!r} is both {twice[0]} and {twice[1]}; rows would learn to repeat"
                )
        return cls(config, parts, schema)

    @property
    def shape(self) -> str:
        """The shape of rows when the recipe names none."""
        if self.recognised:
            return "alpaca" if self.recognised.formatting == "alpaca" else "messages"
        return "conversations" if "user" in self.parts else "alpaca"

    @classmethod
    def _recognised(
        cls, config: ConvertConfig, parts: dict[str, str], rows: Sequence[Row], schema: dict[str, Any] | None
    ) -> Mapping:
        entry = DatasetEntry("rows", inferred=True)
        names = {"messages", "system", "tools"} & parts.keys()
        if names != parts.keys():
            raise RecipeError("convert.map: beside messages only system and tools can be mapped")
        if parts:
            columns = replace(entry.columns, **parts)
            entry = replace(entry, formatting="sharegpt", columns=columns, inferred=False, named=frozenset(names))
        try:
            entry, notes = recognise(entry, rows[:100], "sft")
        except RecipeError as error:
            raise RecipeError(
                f"convert.map: missing, and {str(error).partition(': ')[2].partition(' Describe')[0]}"
            ) from None
        return cls(config, parts, schema, entry, notes)

    def row(self, row: Row, source: RowRef) -> tuple[TrainingRow, Changes]:
        """The training row, and what was changed on the way.

        Raises:
            Rejected: an empty part, a value that is no text.
        """
        if self.recognised:
            return self._conversation(row, source)
        changes: Changes = []
        prompt, reply = (next(name for name in names if name in self.parts) for names in (PROMPTS, REPLIES))
        instruction = self._text(row, prompt, changes)
        if not instruction:
            raise Rejected(f"{self.parts[prompt]} is empty")
        output = self._text(row, reply, changes)
        if not output:
            raise Rejected(f"{self.parts[reply]} is empty")
        if self.config.append_question != "never":
            question = self._value(row, self.config.question, changes)
            if question and (question != instruction or self.config.append_question == "always"):
                instruction = f"{instruction}\n{question}"
        asked = self._text(row, "input", changes)
        return pair(instruction, asked, output, self._text(row, "system", changes)), changes

    def _conversation(self, row: Row, source: RowRef) -> tuple[TrainingRow, Changes]:
        assert self.recognised is not None
        context = RowContext(self.recognised, "sft", source)
        columns = self.recognised.columns
        if (
            self.recognised.formatting == "alpaca"
            and columns.response
            and not isinstance(row.get(columns.response), str)
        ):
            answer = self._json(row.get(columns.response), columns.response, context.fixes)
            row = {**row, columns.response: answer}
        example: Example = FORMATS.get(self.recognised.formatting)(row, context)
        messages, changes = [], list(context.fixes)
        for message in example.messages:
            content = self._plain(message.content, f"a {message.role} turn", changes)
            messages.append(replace(message, content=content))
        shaped = TrainingRow(tuple(messages), example.tools)
        if self.recognised.formatting == "alpaca" and columns.prompt and columns.query and row.get(columns.query):
            parts = [self._plain(str(row[name]), name, []) for name in (columns.prompt, columns.query)]
            shaped = replace(shaped, instruction=parts[0], input=parts[1])
        return shaped, changes

    def _text(self, row: Row, part: str, changes: Changes) -> str:
        return self._value(row, self.parts[part], changes) if part in self.parts else ""

    def _value(self, row: Row, column: str, changes: Changes) -> str:
        """A cell as text without blanks around it."""
        value = row.get(column)
        if value is None:
            return ""
        if not isinstance(value, str):
            return self._json(value, column, changes)
        text = self._plain(value, column, changes)
        if text.strip() != text:
            changes.append(f"{column}: blanks around the text cut")
        return text.strip()

    def _plain(self, text: str, what: str, changes: Changes) -> str:
        plain = to_text(text) if self.config.html == "auto" and parse_json(text) is None else text
        if plain != text:
            changes.append(f"{what}: HTML written as text")
        return plain

    def _json(self, value: Any, column: str, changes: Changes) -> str:
        """JSON text of an answer that is no text, its keys in the declared order."""
        if value is None:
            return ""
        if self.config.output_json == "refuse" and not isinstance(value, int | float):
            raise Rejected(f"{column} is no text (output_json: refuse)")
        changes.append(f"{column}: written as JSON text")
        ready = ordered(value, self.config.key_order, self.schema)
        try:
            return json.dumps(ready, ensure_ascii=self.config.ensure_ascii, allow_nan=False)
        except (ValueError, TypeError):
            raise Rejected(f"{column} holds what JSON cannot spell") from None
