"""Runs a chat template that came with a model: no attribute escapes, bounded time, bounded output.

The jinja sandbox stops a template from reaching Python's insides and from changing what it is given. It does not stop
one that loops or grows without end, so every loop step and every call looks at the clock, and every text that is put
together is measured. A template that is cut off is an error, never half a prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmforge.errors import RecipeError

TIME_LIMIT_S = 5.0  # a chat template takes well under a millisecond for each message
SIZE_LIMIT = 64 * 1024 * 1024  # characters of one row
GENERATION = ("\ue000generation\ue001", "\ue000endgeneration\ue001")  # private-use characters around learned text
# Filters that can blow a short value up (center, indent, format ...) and those that no chat template needs are left out.
FILTERS = (
    "abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
GROWING = {"center", "ljust", "rjust", "zfill", "expandtabs"}  # str methods whose result is as long as they are told


class Refused(Exception):
    """What a template says through raise_exception, or a limit it ran into."""


class Generation(Extension):
    """`{% generation %}`: the template itself marks what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares this attribute as an instance's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening, closing = (nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in GENERATION)
        return [opening, *body, closing]


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox with transformers' filters and globals, a clock and a measure."""

    intercepted_binops = frozenset({"*", "+", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.deadline = float("inf")
        known = self.filters
        self.filters = {name: known[name] for name in FILTERS} | {"tojson": _tojson, "_counted": self.counted}
        self.filters["_concat"] = lambda values: self.measured("".join(map(str, values)))
        self.globals.update(raise_exception=_raise, strftime_now=lambda text: datetime.now().strftime(text))

    def tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise Refused(f"it ran longer than {TIME_LIMIT_S:g} s")

    def measured(self, value: Any) -> Any:
        self.tick()
        if isinstance(value, (str, list, tuple)) and len(value) > SIZE_LIMIT:
            raise Refused(f"it made a value longer than {SIZE_LIMIT} characters")
        return value

    def counted(self, values: Iterable[Any]) -> Iterable[Any]:
        """The same values, with a look at the clock at each."""
        if hasattr(values, "__len__"):
            return _Ticking(values, self.tick)
        return list(self._stepped(values))

    def _stepped(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # jinja2's own names
        if getattr(__obj, "__name__", "") in GROWING or getattr(__obj, "__name__", "") in ("format", "format_map"):
            raise Refused(f"it calls {__obj.__name__}, which this sandbox does not offer")
        return __self.measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise Refused(f"it uses the operator {operator} in a way this sandbox does not offer")
        if operator == "*":
            sizes = [len(side) if isinstance(side, (str, list, tuple)) else abs(side) for side in (left, right)]
            if not all(isinstance(side, (int, float)) for side in (left, right)) and sizes[0] * sizes[1] > SIZE_LIMIT:
                raise Refused(f"it made a value longer than {SIZE_LIMIT} characters")
        return self.measured(super().call_binop(context, operator, left, right))

    def compiled(self, source: str) -> Compiled:
        """The template with every loop counted and every `~` measured."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None).set_lineno(loop.lineno)
        _replace_concat(tree)
        return self.from_string(tree)


class _Ticking:
    """A sized collection whose iteration looks at the clock; jinja's `loop` needs its length."""

    def __init__(self, values: Any, tick: Callable[[], None]):
        self.values, self.tick = values, tick

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        for value in self.values:
            self.tick()
            yield value


def render(source: str, **values: Any) -> str:
    """The text a chat template makes of its variables.

    Raises:
        RecipeError: the template is not jinja, refuses the conversation, or runs into a limit.
    """
    environment, template = _compile(source)
    environment.deadline = time.monotonic() + TIME_LIMIT_S
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(**values):
            environment.tick()
            size += len(piece)
            if size > SIZE_LIMIT:
                raise Refused(f"it writes more than {SIZE_LIMIT} characters")
            pieces.append(piece)
    except Refused as error:
        raise RecipeError(f"the model's chat template stops: {error}") from None
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise RecipeError(f"the model's chat template fails: {error}") from None
    return "".join(pieces)


@lru_cache(maxsize=8)
def _compile(source: str) -> tuple[Environment, Compiled]:
    environment = Environment()
    try:
        return environment, environment.compiled(source)
    except (TemplateError, RecursionError) as error:
        raise RecipeError(f"the model's chat template cannot be read: {error}") from None


def _replace_concat(node: nodes.Node) -> None:
    """Turn `a ~ b` into a measured filter, so that doubling in a loop is noticed."""
    for name, value in node.iter_fields():
        items = value if isinstance(value, list) else [value]
        for i, item in enumerate(items):
            if not isinstance(item, nodes.Node):
                continue
            _replace_concat(item)
            if isinstance(item, nodes.Concat):
                listed = nodes.List(item.nodes).set_lineno(item.lineno)
                new = nodes.Filter(listed, "_concat", [], [], None, None).set_lineno(item.lineno)
                if isinstance(value, list):
                    value[i] = new
                else:
                    setattr(node, name, new)


def _raise(message: str) -> None:
    raise Refused(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it: no HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
