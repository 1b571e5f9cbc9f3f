"""Slots: the facts of a row, sampled by code. A row's slots depend on the seed, its index and the recipe, nothing else.

{uuid: 4}                                         an id
{table: FILE, pick: quota, per_value: 50}         a whole row, every row equally often
{table: FILE, n: 2}                               a list of different rows; pick uniform, columns: [...] choose
{choice: [a, b], weights: [3, 1]}                 one of a list; {by: other.column} takes a mapping of lists
{int: [1, 6]}  {float: [0, 1], digits: 2}         a number, both ends included
{text: "{{ place.name }} 12"}                     made from the slots before it
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.config.paths import find_input
from llmforge.config.schema import Origin
from llmforge.datagen.prompt import Prompt
from llmforge.datagen.tables import Table, read_table
from llmforge.errors import RecipeError, nearest

OPTIONS = {
    "uuid": {"uuid"},
    "table": {"table", "pick", "per_value", "columns", "n", "distinct"},
    "choice": {"choice", "weights", "by"},
    "int": {"int"},
    "float": {"float", "digits"},
    "text": {"text"},
}
RESERVED = ("out", "slots", "compute", "variant", "index", "facts", "schema")
Values = Mapping[str, Any]


def draw_of(*what: object) -> random.Random:
    """A random source that depends on its arguments alone, the same in every process and Python version."""
    text = "\x1f".join(map(str, what))
    return random.Random(hashlib.sha256(text.encode()).digest())


@dataclass(frozen=True)
class Slot:
    """One slot: `sample(seed, index, values so far)` is its value; `quota` the rows it wants in all.

    A slot `in_turn` gives every value its turn; a spare row takes the value of the row that it stands in for.
    """

    name: str
    sample: Callable[[int, int, Values], Any]
    quota: int | None = None
    table: Table | None = None
    choices: tuple[Any, ...] = ()
    in_turn: bool = False


def read_slots(slots: Mapping[str, Any], origin: Origin | None) -> list[Slot]:
    """The slots of a recipe in their order.

    Raises:
        RecipeError: a kind or option that does not exist, a table that cannot be read; names the slot.
    """
    found: list[Slot] = []
    for name, how in slots.items():
        try:
            if not str(name).isidentifier() or name in RESERVED:
                raise RecipeError(f"expected a plain name, none of {', '.join(RESERVED)}")
            found.append(_read(str(name), how, origin, [slot.name for slot in found]))
        except RecipeError as error:
            raise RecipeError(f"{origin.text + ': ' if origin else ''}slots.{name}: {error}") from None
    return found


def _read(name: str, how: Any, origin: Origin | None, before: list[str]) -> Slot:
    kind = next((key for key in how if key in OPTIONS), None) if isinstance(how, dict) else None
    if kind is None:
        raise RecipeError(f"got {str(how)[:60]}, expected a mapping with one of {', '.join(OPTIONS)}")
    for key in how:
        if key not in OPTIONS[kind]:
            raise RecipeError(f"{key!r} is no option of {kind}.{nearest(key, OPTIONS[kind])}")
    if kind == "uuid":
        return Slot(name, lambda seed, index, _: _uuid(seed, index, name))
    if kind == "table":
        return _table(name, how, origin)
    if kind == "choice":
        return _choice(name, how, before)
    if kind == "text":
        prompt = Prompt.of_text(str(how["text"]), frozenset(before))
        return Slot(name, lambda seed, index, values: prompt.render(values))
    low, high = _range(how[kind])
    if kind == "int":
        return Slot(name, lambda seed, index, _: draw_of(seed, name, index).randint(int(low), int(high)))
    digits = int(how.get("digits", 6))
    return Slot(name, lambda seed, index, _: round(draw_of(seed, name, index).uniform(low, high), digits))


def _uuid(seed: int, index: int, name: str) -> str:
    return str(uuid.UUID(bytes=draw_of(seed, name, index).randbytes(16), version=4))


def _range(value: Any) -> tuple[float, float]:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(x, int | float) for x in value)):
        raise RecipeError(f"got {value!r}, expected [lowest, highest]")
    if value[0] > value[1]:
        raise RecipeError(f"the lowest, {value[0]}, is above the highest, {value[1]}")
    return value[0], value[1]


def _table(name: str, how: Mapping[str, Any], origin: Origin | None) -> Slot:
    path = find_input(str(how["table"]), origin)
    if path is None:
        raise RecipeError(f"no table {how['table']!r} beside the recipe or in the working directory")
    table = read_table(Path(path))
    if "columns" in how:
        table = table.columns(list(how["columns"]))
    pick, n, size = how.get("pick", "uniform"), how.get("n"), len(table.rows)
    if pick not in ("quota", "uniform"):
        raise RecipeError(f"pick: got {pick!r}, expected quota or uniform")
    if pick == "quota":
        if n is not None:
            raise RecipeError("n: a quota counts single rows of the table; leave n out, or pick: uniform")
        per_value = how.get("per_value")
        if per_value is not None and (not isinstance(per_value, int) or per_value < 1):
            raise RecipeError(f"per_value: got {per_value!r}, expected a whole number of at least 1")
        rows = table.rows
        # Rounds of all values in random order: any stretch of rows holds every value equally often, within one.
        sample = lambda seed, index, _: rows[_shuffled(size, seed, name, index // size)[index % size]]  # noqa: E731
        return Slot(name, sample, None if per_value is None else per_value * size, table, in_turn=True)
    if n is None:
        return Slot(name, lambda seed, index, _: draw_of(seed, name, index).choice(table.rows), None, table)
    if not isinstance(n, int) or n < 1 or (n > size and how.get("distinct", True)):
        raise RecipeError(f"n: got {n!r}, expected 1 to {size}, the rows of {table.path}")
    if how.get("distinct", True):
        return Slot(name, lambda seed, index, _: draw_of(seed, name, index).sample(table.rows, n), None, table)
    return Slot(name, lambda seed, index, _: draw_of(seed, name, index).choices(table.rows, k=n), None, table)


def _shuffled(size: int, *what: object) -> list[int]:
    order = list(range(size))
    draw_of(*what).shuffle(order)
    return order


def _choice(name: str, how: Mapping[str, Any], before: list[str]) -> Slot:
    choices, weights, by = how["choice"], how.get("weights"), how.get("by")
    if by is not None:
        slot, *path = str(by).split(".")
        if slot not in before:
            raise RecipeError(f"by: {slot!r} is no slot before this one.{nearest(slot, before)}")
        if not isinstance(choices, dict) or not all(isinstance(items, list) and items for items in choices.values()):
            raise RecipeError(f"by: {by} needs a mapping of lists: {{VALUE: [choices]}}")
        return Slot(name, lambda seed, index, values: _choice_by(choices, values[slot], path, seed, name, index))
    if not isinstance(choices, list) or not choices:
        raise RecipeError(f"choice: got {choices!r}, expected a list that is not empty")
    if weights is not None and (len(weights) != len(choices) or min(weights) < 0 or not sum(weights)):
        raise RecipeError(f"weights: got {weights!r}, expected {len(choices)} numbers, not all of them 0")
    sample = lambda seed, index, _: draw_of(seed, name, index).choices(choices, weights)[0]  # noqa: E731
    return Slot(name, sample, choices=tuple(choices))


def _choice_by(choices: Mapping[str, list], value: Any, path: list[str], seed: int, name: str, index: int) -> Any:
    for key in path:
        value = value[key]
    if value not in choices:
        raise RecipeError(f"slots.{name}: no choices for {value!r}; there are some for {', '.join(map(str, choices))}")
    return draw_of(seed, name, index).choice(choices[value])
