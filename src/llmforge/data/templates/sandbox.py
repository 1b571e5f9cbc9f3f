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
from typing import Any, cast

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmforge.errors import RecipeError

TIME_LIMIT_S = 5.0  # a chat template takes well under a millisecond for each message
SIZE_LIMIT = 64 * 1024 * 1024  # characters of one row, or of any value on the way
NUM_LIMIT = 1_000_000  # members of a nested value
BIT_LIMIT = 4096  # of a whole number
GENERATION = ("\ue000generation\ue001", "\ue000endgeneration\ue001")  # private-use characters around learned text
# Filters that chat templates use; those that can blow a short value up (center, indent, format, batch ...) are left
# out.
FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select",
    "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
# Methods of str that do the same.
REFUSED = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"}


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
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=self.measured
        )
        self.deadline = float("inf")
        self.filters = {name: self.filters[name] for name in FILTERS}
        self.filters |= {"tojson": self.tojson, "join": self.join, "replace": self.replace}
        self.filters |= {"_counted": self.counted, "_measured": self.measured, "_concat": self.concat}
        self.globals.update(raise_exception=_raise, strftime_now=lambda text: datetime.now().strftime(text))

    def tick(self) -> None:
        """Look at the clock."""
        if time.monotonic() > self.deadline:
            raise Refused(f"it ran longer than {TIME_LIMIT_S:g} s")

    def measured(self, value: Any) -> Any:
        """The value, unless it is too large to print; it is walked, since a list may hold another one twice."""
        self.tick()
        size, members, waiting = 0, 0, [value]
        while waiting and size <= SIZE_LIMIT and members <= NUM_LIMIT:
            item = waiting.pop()
            members += 1
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, (list, tuple)):
                waiting.extend(item)
            elif isinstance(item, dict):
                waiting.extend(item.keys())
                waiting.extend(item.values())
            elif isinstance(item, int) and item.bit_length() > BIT_LIMIT:
                raise Refused(f"it made a number of more than {BIT_LIMIT} bits")
        if waiting:
            raise Refused(f"it made a value of more than {SIZE_LIMIT} characters or {NUM_LIMIT} members")
        return value

    def fits(self, size: int) -> None:
        """Refuse a text before it is made."""
        self.tick()
        if size > SIZE_LIMIT:
            raise Refused(f"it made a value of more than {SIZE_LIMIT} characters")

    def concat(self, values: Iterable[Any]) -> str:
        """Join what a block, a macro or `~` has put together."""
        texts = [str(self.measured(value)) for value in values]
        self.fits(sum(map(len, texts)))
        return "".join(texts)

    def join(self, values: Iterable[Any], d: str = "") -> str:
        texts = [str(self.measured(value)) for value in values]
        self.fits(sum(map(len, texts)) + len(str(d)) * len(texts))
        return str(d).join(texts)

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = text.count(old) if count is None or count < 0 else min(text.count(old), count)
        self.fits(len(text) + found * len(new))
        return text.replace(old, new, found)

    def tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers writes it: no HTML escapes, characters as they are."""
        if indent is not None and not 0 <= indent <= 16:
            raise Refused(f"it indents JSON by {indent}")
        self.measured(value)
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def counted(self, values: Iterable[Any]) -> Iterable[Any]:
        """The same values, with a look at the clock at each; jinja's `loop` asks for their number."""
        return _Ticking(values if hasattr(values, "__len__") else list(values), self.tick)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # jinja2's own names
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if name in REFUSED:
            raise Refused(f"it calls {name}, which this sandbox does not offer")
        if isinstance(owner, str) and name == "replace":
            return __self.replace(owner, *args)
        if isinstance(owner, str) and name == "join":
            return __self.join(args[0], owner)
        return __self.measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise Refused(f"it uses the operator {operator} in a way this sandbox does not offer")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                    self.fits(len(many) * times)
        return self.measured(super().call_binop(context, operator, left, right))

    def compiled(self, source: str) -> Compiled:
        """The template with every loop counted and every value that it makes measured."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "_counted")
        _measure(tree)
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


def _measure(node: nodes.Node) -> None:
    """Measure what filters and lists make, and turn `a ~ b` into a filter that is measured too."""
    for name, value in node.iter_fields():
        items = value if isinstance(value, list) else [value]
        for i, item in enumerate(items):
            if not isinstance(item, nodes.Node):
                continue
            _measure(item)
            if isinstance(item, nodes.Concat):
                new = _filtered(nodes.List(item.nodes).set_lineno(item.lineno), "_concat")
            elif isinstance(item, (nodes.Filter, nodes.List, nodes.Dict)) and getattr(item, "name", "") != "_counted":
                new = _filtered(item, "_measured")
            else:
                continue
            if isinstance(value, list):
                value[i] = new
            else:
                setattr(node, name, new)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    filtered = nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None)
    filtered.set_lineno(node.lineno)
    return filtered


def _raise(message: str) -> None:
    raise Refused(message)
