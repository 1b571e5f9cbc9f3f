"""Curves of one or more runs over each other, as SVG: direct labels, one colour and one dash a run, eval as dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmforge.webui.curves import Point
from llmforge.webui.markup import Safe, join, tag

WIDTH, HEIGHT = 960, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 28
COLOURS = 8  # classes c0 to c7 of board.css, chosen for colour-blind readers; then they come again with a dash


@dataclass(frozen=True)
class Line:
    """One run's points; `dots` are few values such as evaluations."""

    name: str
    points: Sequence[Point]
    dots: Sequence[Point] = ()


def curves_chart(lines: Sequence[Line], *, label: str, empty: str, dots_label: str) -> Safe:
    """The chart, its legend, and one sentence for those who do not see it; `empty` where there are no points."""
    drawn = [line for line in lines if line.points or line.dots]
    if not drawn:
        return tag("p", empty, class_="calm empty")
    every = [point for line in drawn for point in (*line.points, *line.dots)]
    x = _Scale(*_ends([p[0] for p in every]), LEFT, WIDTH - RIGHT)
    values = [p[1] for p in every if math.isfinite(p[1])]
    y = _Scale(*_padded(*_ends(values)), HEIGHT - BOTTOM, TOP)
    shapes = [_grid(x, y)]
    for number, line in enumerate(drawn):
        look = _look(number)
        if line.points:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line.points if math.isfinite(value))
            shapes.append(tag("polyline", points=path, class_=look, data_name=line.name))
        for step, value in line.dots:
            told = tag("title", f"{line.name}: {dots_label} {value:.4g} ({step:g})")
            shapes.append(tag("circle", told, cx=f"{x(step):.1f}", cy=f"{y(value):.1f}", r=4, class_=look))
    chart = tag(
        "svg",
        *shapes,
        tag("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        class_="curves",
        data_x=f"{x.low} {x.high} {LEFT} {WIDTH - RIGHT}",
        data_y=f"{y.low} {y.high} {HEIGHT - BOTTOM} {TOP}",
    )
    legend = [
        tag(
            "li",
            Safe(f'<svg viewBox="0 0 26 8" width="26" height="8" aria-hidden="true">'
                 f'<line x1="0" x2="26" y1="4" y2="4" class="{_look(number)}"/></svg> '),
            line.name,
            class_="key",
        )
        for number, line in enumerate(drawn)
    ]  # fmt: skip
    told = tag("output", "", class_="tip", aria_hidden="true")
    return tag(
        "figure", tag("div", chart, told, class_="plot"), tag("ul", *legend, class_="legend"), class_="chart-box"
    )


def _look(number: int) -> str:
    return f"c{number % COLOURS}" + (f" dash{number // COLOURS}" if number >= COLOURS else "")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A little room above and below; from 0 where the values come near it."""
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < (high - low) * 0.5 else low - room), high + room


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between `low` and `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _grid(x: _Scale, y: _Scale) -> Safe:
    parts = []
    for value in ticks(y.low, y.high):
        at = f"{y(value):.1f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", f"{value:g}", x=LEFT - 8, y=float(at) + 4, text_anchor="end"))
    for value in ticks(x.low, x.high, 8):
        if value == int(value):
            parts.append(
                tag("text", f"{int(value):,}", x=f"{x(value):.1f}", y=HEIGHT - 8, text_anchor="middle")
            )  # fmt: skip
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    return join(*parts)
