"""Expressions of a recipe (`compute`, `checks`, `facts`): a small part of Python over JSON values, nothing else.

Dots and brackets reach into mappings and lists: `out.points[0]`, `place[1].lon`. Functions are those of compute.py.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmforge.datagen.compute import FUNCTIONS, WORDS
from llmforge.errors import nearest

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
MAX_LENGTH = 2000
CONSTANTS = {"true": True, "false": False, "null": None, **WORDS}


class ExpressionError(ValueError):
    """An expression that cannot be read, or has no value for this row."""


@dataclass(frozen=True)
class Expression:
    """One expression, read and checked; `names` are the values it starts from."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def read(cls, text: str, known: frozenset[str]) -> Expression:
        """Read an expression that may use the names `known`.

        Raises:
            ExpressionError: no expression, a function or name that does not exist, something that is not allowed.
        """
        if len(text) > MAX_LENGTH:
            raise ExpressionError(f"longer than {MAX_LENGTH:,} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"cannot be read: {getattr(error, 'msg', None) or error}") from None
        names = set(_names(tree, frozenset()))
        for name in sorted(names - known - CONSTANTS.keys()):
            raise ExpressionError(f"{name!r} is no slot.{nearest(name, known)} Known: {', '.join(sorted(known))}")
        return cls(text, tree, frozenset(names - CONSTANTS.keys()))

    def value(self, values: Mapping[str, Any]) -> Any:
        """The expression's value.

        Raises:
            ExpressionError: a key, place or type that is not there, in words.
        """
        try:
            return _value(self.tree, {**CONSTANTS, **values})
        except ExpressionError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
            raise ExpressionError(f"{self.text}: {error}") from None


def path_of(tree: ast.expr) -> tuple[str, list[str | int]] | None:
    """`out.points[0].lon` as ("out", ["points", 0, "lon"]); None for anything that is no plain path."""
    if isinstance(tree, ast.Name):
        return tree.id, []
    if isinstance(tree, ast.Attribute) and (inner := path_of(tree.value)):
        return inner[0], [*inner[1], tree.attr]
    if isinstance(tree, ast.Subscript) and isinstance(tree.slice, ast.Constant) and (inner := path_of(tree.value)):
        return inner[0], [*inner[1], tree.slice.value]  # type: ignore[list-item]  # a constant index is a word or number
    return None


def _names(node: ast.AST, bound: frozenset[str]) -> Iterator[str]:
    """Names an expression starts from; refuses every kind of node that has no value here."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return
        case ast.Name(id=name):
            if name not in bound:
                yield name
        case ast.Attribute(value=inner, attr=attr):
            if attr.startswith("_"):
                raise ExpressionError(f"{attr!r} is not a key one may ask for")
            yield from _names(inner, bound)
        case ast.Subscript(value=inner, slice=place):
            yield from _names(inner, bound)
            yield from _names(place, bound)
        case ast.Dict(keys=keys) if None in keys:
            raise ExpressionError("`**` is not allowed here")
        case ast.Slice() | ast.List() | ast.Tuple() | ast.Dict() | ast.IfExp():
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.expr_context):
                    yield from _names(child, bound)
        case ast.BoolOp(values=parts):
            for part in parts:
                yield from _names(part, bound)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=inner):
            yield from _names(inner, bound)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            yield from _names(left, bound)
            yield from _names(right, bound)
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in OPERATORS for op in ops):
            for part in (left, *rest):
                yield from _names(part, bound)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            if name not in FUNCTIONS:
                raise ExpressionError(
                    f"{name!r} is no function.{nearest(name, FUNCTIONS)} Known: {', '.join(sorted(FUNCTIONS))}"
                )
            for part in (*args, *(keyword.value for keyword in keywords)):
                yield from _names(part, bound)
        case (
            ast.GeneratorExp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name)) as loop])
            | ast.ListComp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name)) as loop])
        ):
            yield from _names(loop.iter, bound)
            for part in (item, *loop.ifs):
                yield from _names(part, bound | {name})
        case _:
            raise ExpressionError(f"{ast.unparse(node)!r} is not allowed here")


def _value(node: ast.AST, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.Attribute(value=inner, attr=key):
            return _key(_value(inner, values), key, node)
        case ast.Subscript(value=inner, slice=ast.Slice(lower=low, upper=high)):
            start, end = (None if part is None else _value(part, values) for part in (low, high))
            return _value(inner, values)[start:end]
        case ast.Subscript(value=inner, slice=place):
            return _key(_value(inner, values), _value(place, values), node)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, values) for item in items]
        case ast.Dict(keys=keys, values=items):
            pairs = zip(keys, items, strict=True)
            return {_value(key, values): _value(item, values) for key, item in pairs if key is not None}
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, values) else orelse, values)
        case ast.BoolOp(op=op, values=parts):
            result: Any = None
            for part in parts:
                result = _value(part, values)
                if bool(result) is isinstance(op, ast.Or):
                    return result
            return result
        case ast.UnaryOp(op=op, operand=inner):
            value = _value(inner, values)
            return not value if isinstance(op, ast.Not) else -value
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, values), _value(right, values)
            if isinstance(op, ast.Mult | ast.Mod) and not (_is_number(a) and _is_number(b)):
                raise ExpressionError(f"{ast.unparse(node)}: expected two numbers")
            return OPERATORS[type(op)](a, b)
        case ast.Compare(left=left, ops=ops, comparators=rest):
            sides = [_value(part, values) for part in (left, *rest)]
            return all(OPERATORS[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {keyword.arg: _value(keyword.value, values) for keyword in keywords if keyword.arg}
            return FUNCTIONS[name](*(_value(part, values) for part in args), **named)
        case ast.GeneratorExp(elt=item, generators=[loop]) | ast.ListComp(elt=item, generators=[loop]):
            assert isinstance(loop.target, ast.Name)
            inner_values = ({**values, loop.target.id: one} for one in _value(loop.iter, values))
            return [_value(item, scope) for scope in inner_values if all(_value(test, scope) for test in loop.ifs)]
    raise ExpressionError(f"{ast.unparse(node)!r} is not allowed here")  # pragma: no cover  # `read` refused it


def _key(value: Any, key: Any, node: ast.AST) -> Any:
    where = ast.unparse(node)
    if isinstance(value, Mapping):
        if key not in value:
            raise ExpressionError(f"{where}: no key {key!r}.{nearest(key, map(str, value))} Known: {', '.join(value)}")
        return value[key]
    if isinstance(value, list | str) and isinstance(key, int) and not isinstance(key, bool):
        if not -len(value) <= key < len(value):
            raise ExpressionError(f"{where}: there are {len(value)} items")
        return value[key]
    raise ExpressionError(f"{where}: nothing of that kind in {type(value).__name__} {str(value)[:40]!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
