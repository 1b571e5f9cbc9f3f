"""One row before it is asked: its slots, computed numbers, messages and schema; and how its answer is judged."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.config.paths import find_input
from llmforge.datagen.answer import BadAnswer, Parsed, check_schema, read_json, read_text
from llmforge.datagen.constants import SchemaConflict, allows, dotted, subschema, with_constants
from llmforge.datagen.expression import Expression, ExpressionError, path_of
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.prompt import Prompt
from llmforge.datagen.slots import Slot, read_slots
from llmforge.errors import RecipeError, nearest

ID = re.compile(r"[\w.-]{1,100}")
PLACE = re.compile(r"[^.\[\]\s\d][^.\[\]\s]*(\[\d+\]|\.[^.\[\]\s\d][^.\[\]\s]*)*")
ROW_KEYS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Task:
    """One row to be asked."""

    index: int
    id: str
    variant: Any
    slots: dict[str, Any]
    compute: dict[str, Any]
    messages: tuple[dict[str, str], ...]
    schema: dict[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """What a record begins with, accepted or not."""
        return {
            "id": self.id,
            "index": self.index,
            "variant": self.variant,
            "slots": self.slots,
            "compute": self.compute,
            "messages": list(self.messages),
        }


@dataclass
class TaskMaker:
    """Everything of a recipe that turns an index into a task, and an answer into a training row."""

    recipe: DatasetRecipe
    slots: list[Slot]
    variants: tuple[Any, ...]
    num_rows: int
    compute: dict[str, Expression]
    prompt: Prompt | None
    system: Prompt | None
    schema: dict[str, Any] | None
    facts: list[tuple[Sequence[str | int], Expression]]
    checks: dict[str, Expression]
    row: dict[str, Prompt | Expression]
    digests: dict[str, str] = field(default_factory=dict)  # what rows depend on -> sha256

    @classmethod
    def of(cls, recipe: DatasetRecipe) -> TaskMaker:
        """Read everything the recipe names.

        Raises:
            RecipeError: names the key and what is wrong with it.
        """
        slots = read_slots(recipe.slots, recipe.origins.get("slots"))
        names = frozenset(slot.name for slot in slots)
        known = names | {"slots", "variant", "index"}
        compute: dict[str, Expression] = {}
        for name, text in recipe.compute.items():
            scope = known | ({"compute"} if compute else set())
            compute[name] = _expression(f"compute.{name}", text, frozenset(scope))
        known |= {"compute"}
        schema = _read_schema(recipe.output_schema)
        facts = [(_fact_path(path), _expression(f"facts.{path}", text, known)) for path, text in recipe.facts.items()]
        if facts and schema is None:
            raise RecipeError("facts: they become constants of output_schema, which is missing")
        with_out = known if recipe.mode == "rules" else known | {"out"}
        maker = cls(
            recipe,
            slots,
            _variants(recipe, slots),
            _num_rows(recipe, slots),
            compute,
            Prompt.of_file(recipe.prompt, known | {"schema"}) if recipe.prompt else None,
            Prompt.of_file(recipe.system, known | {"schema"}) if recipe.system else None,
            schema,
            facts,
            _checks(recipe.checks, with_out),
            _row(recipe, with_out),
        )
        maker.digests = maker._digests()
        return maker

    def task(self, index: int) -> Task:
        """The task of a row; an index of `num_rows` and more is a spare's (quota.py).

        Raises:
            RecipeError: a fact that cannot be computed or contradicts the schema; names the row.
        """
        try:
            values = self._values(index)
            constants = [(path, expression.value(values)) for path, expression in self.facts]
            schema = with_constants(self.schema, constants) if self.schema is not None else None
        except (ExpressionError, SchemaConflict, ValueError) as error:
            raise RecipeError(f"row {index}: {error}") from None
        scope = {**values, "schema": json.dumps(schema, ensure_ascii=False)}
        asked = [("system", self.system), ("user", self.prompt)]
        messages = tuple({"role": role, "content": prompt.render(scope)} for role, prompt in asked if prompt)
        row_id = str(values["slots"].get("id", f"{index:06d}"))
        if not ID.fullmatch(row_id):
            raise RecipeError(f"row {index}: the id {row_id!r} is no file name; letters, digits, dot and dash are")
        return Task(index, row_id, values["variant"], values["slots"], values["compute"], messages, schema)

    def check_contradictions(self, task: Task) -> None:
        """Refuse checks `out.PLACE == fact` that no answer of the schema can pass, before anything is paid for.

        Raises:
            RecipeError: names the check, the value and what the schema allows there.
        """
        for name, expression in self.checks.items():
            tree = expression.tree
            if task.schema is None or not (isinstance(tree, ast.Compare) and isinstance(tree.ops[0], ast.Eq)):
                continue
            sides = [tree.left, *tree.comparators]
            for out, other in (sides[:2], sides[1::-1]):
                place = path_of(out)
                if place is None or place[0] != "out" or "out" in ast.unparse(other).split("."):
                    continue
                wanted = Expression(ast.unparse(other), other, frozenset()).value(scope_of(task))
                there = subschema(task.schema, place[1])
                problem = None if there is None else allows(there, wanted, task.schema)
                if problem:
                    raise RecipeError(
                        f"checks.{name}: row {task.index} wants {dotted(place[1])} == {wanted!r}, "
                        f"and output_schema does not allow it: {problem}"
                    )

    def judge(self, task: Task, text: str, finish_reason: str) -> dict[str, Any]:
        """The record of an accepted answer.

        Raises:
            BadAnswer: its cause and what was wrong.
        """
        if task.schema is None and self.recipe.teacher.mode == "text":
            parsed = Parsed(read_text(text, finish_reason))
        else:
            parsed = read_json(text, finish_reason)
        if task.schema is not None:
            check_schema(parsed.value, task.schema)
        return self.record(task, parsed)

    def record(self, task: Task, parsed: Parsed) -> dict[str, Any]:
        """The record of a row whose answer is well formed, once every check holds.

        Raises:
            BadAnswer: a check that does not hold.
        """
        scope = {**scope_of(task), "out": parsed.value}
        for name, check in self.checks.items():
            try:
                holds = check.value(scope)
            except ExpressionError as error:
                raise BadAnswer(f"check:{name}", str(error)) from None
            if not holds:
                raise BadAnswer(f"check:{name}", f"{check.text} does not hold{self._seen(check, scope)}")
        row = {
            key: part.render(scope) if isinstance(part, Prompt) else _row_value(part, scope)
            for key, part in self.row.items()
        }
        if "instruction" not in row:
            row["instruction"] = task.messages[-1]["content"]
        return {
            **task.facts(),
            "out": parsed.value,
            "instruction": row["instruction"],
            "input": row.get("input", ""),
            "output": row.get("output", parsed.value),
            "repaired": parsed.repaired,
        }

    def _seen(self, check: Expression, scope: Mapping[str, Any]) -> str:
        """Both sides of a comparison, for the teacher and the report."""
        if not isinstance(check.tree, ast.Compare) or len(check.tree.comparators) != 1:
            return ""
        sides = (check.tree.left, check.tree.comparators[0])
        a, b = (Expression("", side, frozenset()).value(scope) for side in sides)
        return f": {json.dumps(a, ensure_ascii=False)[:100]} and {json.dumps(b, ensure_ascii=False)[:100]}"

    def _values(self, index: int) -> dict[str, Any]:
        """Slots by name, and under `slots`, `compute`, `variant`, `index`."""
        by, seed = self.recipe.variants.get("by"), self.recipe.seed
        place = index % self.num_rows  # of a spare: that of the row it stands in for
        variant = self.variants[place * len(self.variants) // self.num_rows] if self.variants else None
        slots: dict[str, Any] = {}
        for slot in self.slots:
            number = place if slot.in_turn else index
            slots[slot.name] = variant if slot.name == by else slot.sample(seed, number, slots)
        computed: dict[str, Any] = {}
        values = {**slots, "slots": slots, "compute": computed, "variant": variant, "index": index}
        for name, expression in self.compute.items():
            computed[name] = expression.value(values)
        return values

    def _digests(self) -> dict[str, str]:
        """What the rows depend on; a run folder made from something else is not continued."""
        recipe = self.recipe
        parts: dict[str, Any] = {
            "seed": recipe.seed,
            "slots": recipe.slots,
            "variants": (recipe.variants, self.num_rows if self.variants else None),
            "compute": recipe.compute,
            "prompt": self.prompt.text if self.prompt else None,
            "system": self.system.text if self.system else None,
            "output_schema": self.schema,
            "facts": recipe.facts,
            "checks": recipe.checks,
            "row": {key: part.text for key, part in self.row.items()},
            "dedupe": (recipe.dedupe.field, recipe.dedupe.method, recipe.dedupe.max, recipe.dedupe.zh),
        }
        parts |= {f"table {slot.table.path}": slot.table.digest for slot in self.slots if slot.table}
        return {name: digest(part) for name, part in parts.items()}


def digest(value: Any) -> str:
    """sha256 of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def scope_of(task: Task) -> dict[str, Any]:
    """The names an expression about a task may use, but for `out`."""
    return {
        **task.slots,
        "slots": task.slots,
        "compute": task.compute,
        "variant": task.variant,
        "index": task.index,
    }


def _expression(key: str, text: Any, known: frozenset[str]) -> Expression:
    try:
        return Expression.read(str(text), known)
    except ExpressionError as error:
        raise RecipeError(f"{key}: {error}") from None


def _fact_path(text: str) -> Sequence[str | int]:
    if not PLACE.fullmatch(text):
        raise RecipeError(f"facts: {text!r} is no place in the answer; write it like points[0].lon")
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", text)]


def _read_schema(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError) as error:
        raise RecipeError(f"output_schema: {path} is not JSON: {error}") from None
    except SchemaError as error:
        raise RecipeError(f"output_schema: {path} is no JSON Schema: {error.message}") from None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise RecipeError(f"output_schema: {path} must describe an object (`type: object`)")
    return schema


def _checks(given: Any, known: frozenset[str]) -> dict[str, Expression]:
    """Checks by name; one without a name is called after the first part of the answer it looks at."""
    if isinstance(given, dict):
        return {str(name): _expression(f"checks.{name}", text, known) for name, text in given.items()}
    found: dict[str, Expression] = {}
    for number, text in enumerate(given, 1):
        expression = _expression(f"checks[{number}]", text, known)
        match = re.search(r"\bout\.(\w+)", expression.text)
        name = match[1] if match else str(number)
        found[name if name not in found else f"{name}#{number}"] = expression
    return found


def _row(recipe: DatasetRecipe, known: frozenset[str]) -> dict[str, Prompt | Expression]:
    found: dict[str, Prompt | Expression] = {}
    for key, text in recipe.row.items():
        if key not in ROW_KEYS:
            raise RecipeError(f"row.{key}: no such key.{nearest(key, ROW_KEYS)} Known: {', '.join(ROW_KEYS)}")
        if key == "output" and "{{" not in str(text):
            found[key] = _expression("row.output", text, known)
            continue
        path = find_input(str(text), recipe.origins.get("row")) if str(text).endswith(".j2") else None
        found[key] = Prompt.of_file(path, known) if path else Prompt.of_text(str(text), known)
    if recipe.mode == "rules" and not {"instruction", "output"} <= found.keys():
        raise RecipeError("row: mode rules needs instruction and output")
    return found


def _row_value(expression: Expression, scope: Mapping[str, Any]) -> Any:
    try:
        return expression.value(scope)
    except ExpressionError as error:
        raise BadAnswer("row", str(error)) from None


def _variants(recipe: DatasetRecipe, slots: Sequence[Slot]) -> tuple[Any, ...]:
    if not recipe.variants:
        return ()
    by = recipe.variants.get("by")
    if set(recipe.variants) != {"by"}:
        raise RecipeError(f"variants: got {recipe.variants}, expected {{by: SLOT}}")
    slot = next((slot for slot in slots if slot.name == by), None)
    if slot is None or not slot.choices:
        names = [slot.name for slot in slots if slot.choices]
        raise RecipeError(f"variants: {by!r} is no slot with choices.{nearest(by, names)} Known: {', '.join(names)}")
    return slot.choices


def _num_rows(recipe: DatasetRecipe, slots: Sequence[Slot]) -> int:
    quotas = {slot.name: slot.quota for slot in slots if slot.quota is not None}
    wanted = set(quotas.values()) | ({recipe.rows} if recipe.rows else set())
    said = ", ".join(f"slots.{name} {quota}" for name, quota in quotas.items())
    if len(wanted) > 1:
        raise RecipeError(f"rows: {f'rows {recipe.rows}, ' if recipe.rows else ''}{said}: these must be one number")
    if not wanted:
        raise RecipeError("rows: missing; say how many, or give a table with pick: quota and per_value")
    return int(wanted.pop() or 0)
