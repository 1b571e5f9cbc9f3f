"""A row's own JSON Schema: the facts sampled and computed for it stand in it as constants."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

Path = Sequence[str | int]


class SchemaConflict(ValueError):
    """A fact that no answer of the schema could hold."""


def with_constants(schema: Mapping[str, Any], constants: Sequence[tuple[Path, Any]]) -> dict[str, Any]:
    """The schema with a `const` at each path; keys on the way become required.

    Raises:
        SchemaConflict: the schema has no such place, or does not allow the value there.
    """
    built = copy.deepcopy(dict(schema))
    for path, value in constants:
        place = _place(built, path, built)
        problem = allows(place, value, schema)
        if problem:
            raise SchemaConflict(f"{dotted(path)} must be {value!r}, and the schema does not allow it: {problem}")
        description = place.get("description")
        place.clear()
        place.update({"const": value} if description is None else {"description": description, "const": value})
    return built


def subschema(schema: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The schema of one place of the answer, or None where it cannot be told."""
    try:
        return _place(copy.deepcopy(dict(schema)), path, dict(schema))
    except SchemaConflict:
        return None


def allows(schema: Mapping[str, Any], value: Any, root: Mapping[str, Any]) -> str | None:
    """Why a schema, which may point into `root`, does not allow a value; None when it does."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    whole = {**{key: item for key, item in root.items() if key == "$defs"}, **schema}
    error = next(iter(Draft202012Validator(whole, registry=Registry()).iter_errors(value)), None)
    return None if error is None else str(error.message)


def dotted(path: Path) -> str:
    """["points", 0, "lon"] as points[0].lon."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _place(schema: dict[str, Any], path: Path, root: Mapping[str, Any]) -> dict[str, Any]:
    """The subschema at a path; what lies behind a `$ref` is copied in, since the constant is this place's alone."""
    here = schema
    for depth, part in enumerate(path):
        here = _resolved(here, root)
        if isinstance(part, str):
            child = here.get("properties", {}).get(part)
            if child is None:
                known = ", ".join(here.get("properties", {})) or "none"
                raise SchemaConflict(f"the schema has no place {dotted(path[: depth + 1])}; known there: {known}")
            if part not in here.setdefault("required", []):
                here["required"] = [*here["required"], part]
        else:
            items = here.setdefault("prefixItems", [])
            common = here.get("items", {})
            while len(items) <= part:
                items.append(copy.deepcopy(common) if isinstance(common, dict) else {})
            here["minItems"] = max(here.get("minItems", 0), part + 1)
            child = items[part]
        if not isinstance(child, dict):
            raise SchemaConflict(f"the schema leaves {dotted(path[: depth + 1])} open; describe it")
        here = child
    return _resolved(here, root)


def _resolved(here: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    while "$ref" in here:
        reference = here.pop("$ref")
        target: Any = root
        for part in str(reference).removeprefix("#/").split("/"):
            if not isinstance(target, Mapping) or part not in target:
                raise SchemaConflict(f"the reference {reference!r} leads nowhere inside the schema")
            target = target[part]
        here.update(copy.deepcopy(dict(target)))
    return here
