"""Live parts of a page: files are read again at every tick of a timer, and only what changed is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr


def on_load(fill: Callable[..., Any], outputs: Sequence[Any], inputs: Any = None, **how: Any) -> None:
    """When the page is opened, `fill(request, *inputs)` gives the values of `outputs`.

    gr.on without triggers would do the same whenever an input changes.
    """
    page = gr.context.Context.root_block
    assert page is not None, "a page is built inside its gr.Blocks"
    page.load(fill, inputs, list(outputs), **{"show_progress": "hidden", "api_visibility": "private", **how})


def on_tick(timer: gr.Timer, fill: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """At every tick, `fill(request, *inputs)` gives the values of `outputs`; what stayed the same is not sent.

    So an open page costs next to nothing while nothing happens, and what a reader has selected or folded stays.
    `fill` returns a list with a value for each output; it must be quick, since it is called for every open page.
    """
    seen = gr.State([])

    def tick(request: gr.Request, before: list[str], *given: Any) -> list[Any]:
        values = list(fill(request, *given))
        marks = [hashlib.sha256(repr(value).encode()).hexdigest() for value in values]
        sent = [gr.skip() if old == new else value for old, new, value in zip(before, marks, values, strict=False)]
        return [marks, *(sent or values)]

    timer.tick(tick, [seen, *inputs], [seen, *outputs], show_progress="hidden", queue=False, api_visibility="private")
