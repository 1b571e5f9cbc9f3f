"""Small charts as SVG and HTML: they need no script, follow the theme's colours, and say in words what they show."""

from __future__ import annotations

from collections.abc import Sequence

from llmforge.webui.markup import Safe, tag

WIDTH, HEIGHT, FOOT = 640, 170, 26
FAR = 1.5


def histogram(edges: Sequence[float], counts: Sequence[int], *, line: float, line_label: str, label: str) -> Safe:
    """Bars between `edges`, and a line at `line`; one far beyond them stands at the right edge."""
    far = line > FAR * edges[-1]
    low, high = edges[0], edges[-1] if far else max(edges[-1], line * 1.02)
    most = max(counts) or 1

    def x(value: float) -> float:
        return round((value - low) / max(high - low, 1e-9) * WIDTH, 1)

    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        tall = round(count / most * (HEIGHT - 20), 1)
        told = tag("title", f"{left:g}–{right:g}: {count:,}")
        bars.append(
            tag(
                "rect",
                told,
                x=x(left),
                y=HEIGHT - tall,
                width=max(x(right) - x(left) - 1, 1),
                height=tall,
                class_="bar",
            )
        )
    at = min(x(line), WIDTH - 1)
    anchor = "end" if at > WIDTH / 2 else "start"
    return tag(
        "svg",
        *bars,
        tag("line", x1=0, x2=WIDTH, y1=HEIGHT, y2=HEIGHT, class_="axis"),
        tag("line", x1=at, x2=at, y1=4, y2=HEIGHT, class_="cut"),
        tag(
            "text",
            f"{line_label} →" if far else line_label,
            x=at + (-6 if anchor == "end" else 6),
            y=14,
            text_anchor=anchor,
            class_="cut-label",
        ),
        tag("text", f"{low:g}", x=0, y=HEIGHT + 18),
        tag(
            "text",
            f"{edges[-1]:g}",
            x=x(edges[-1]),
            y=HEIGHT + 18,
            text_anchor="end" if high == edges[-1] else "middle",
        ),
        viewBox=f"0 0 {WIDTH} {HEIGHT + FOOT}",
        role="img",
        aria_label=label,
        class_="chart",
    )


def before_after(values: Sequence[tuple[str, float, float]], before: str, after: str, label: str) -> Safe:
    """For each name two bars on a scale from 0 to its own round maximum, with their numbers beside them."""
    groups = []
    for name, one, two in values:
        scale = scale_of(one, two)
        lines = [
            tag(
                "div",
                tag("span", class_=f"bar {kind}", style=f"--share: {max(value, 0) / scale:.4f}"),
                tag("span", f"{value:.4g} {said}"),
                class_="line",
            )
            for value, kind, said in ((one, "before", before), (two, "after", after))
        ]
        groups.append(tag("div", tag("span", name, class_="data name"), tag("div", *lines), class_="pair"))
    return tag("figure", *groups, aria_label=label, class_="bars")


def scale_of(*values: float) -> float:
    """The top of a scale: 1 for shares, 100 for percentages, else the largest value."""
    most = max(*values, 1e-9)
    return 1.0 if most <= 1 else 100.0 if most <= 100 else most
