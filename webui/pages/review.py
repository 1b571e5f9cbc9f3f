"""The page Review: rows one by one, accepted, edited or rejected, each decision on the disk before the next row."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from typing import Any

import gradio as gr

from llmforge.datagen.patches import State
from llmforge.webui.board import Board
from llmforge.webui.markup import PICK, Safe, tag
from llmforge.webui.poll import on_load
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.recipes_here import reviewable
from llmforge.webui.refusal import Refusal
from llmforge.webui.review_keys import KEYS, SEEN, SHOW_CURRENT
from llmforge.webui.review_queue import FILTERS, Place, Queue
from llmforge.webui.review_view import show_facts, show_list, show_progress, show_row, show_similar
from llmforge.webui.reviewing import Queues, check_author, edited
from llmforge.webui.words import Words, mark, words_of

BUTTONS = ("accept", "reject", "edit", "skip", "previous", "next", "undo")


def build(board: Board) -> None:
    """What stands on the page."""
    queues = Queues(board)
    place = gr.State(Place())
    seen = gr.Textbox(visible=False)
    gr.HTML(tag("p", Safe(str(mark("review.intro"))), class_="calm"))
    with gr.Row():
        source = gr.Dropdown(
            [], label=mark("review.source"), info=mark("review.source_info"), allow_custom_value=True,
            elem_id="review-source", scale=3,
        )  # fmt: skip
        part = gr.Number(
            100, label=mark("review.part"), info=mark("review.part_info"), minimum=1, maximum=100, precision=0,
            elem_id="review-part", scale=1, min_width=170,
        )  # fmt: skip
        author = gr.Textbox(os.environ.get("USER", ""), label=mark("review.author"), elem_id="review-author", scale=1)
        opening = gr.Button(mark("review.open"), variant="primary", elem_id="review-open", scale=0, min_width=110)
    trouble = gr.HTML(elem_id="review-trouble")
    with gr.Column(visible=False, elem_id="review-work") as work:
        progress = gr.HTML(elem_id="review-progress")
        with gr.Row(elem_id="review-find"):
            kept = gr.Dropdown(list(FILTERS), value="all", label=mark("review.filter"), elem_id="review-filter")
            search = gr.Textbox(label=mark("review.search"), elem_id="review-search", max_lines=1)
        with gr.Row(elem_id="review-actions", elem_classes="actions"):
            buttons = {
                name: gr.Button(
                    mark(f"review.{name}"), elem_id=f"review-{name}", size="sm", min_width=90,
                    variant="primary" if name == "accept" else "secondary",
                )
                for name in BUTTONS
            }  # fmt: skip
            keys = gr.Button(mark("review.keys"), elem_id="review-keys", size="sm", min_width=90)
        with gr.Row(visible=False, elem_classes="actions") as editing:
            save = gr.Button(mark("review.save"), variant="primary", elem_id="review-save", size="sm")
            back = gr.Button(mark("review.cancel_edit"), elem_id="review-back", size="sm")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                listing = gr.HTML(js_on_load=SHOW_CURRENT, elem_id="review-list")
            with gr.Column(scale=2, min_width=320):
                record = gr.HTML(js_on_load=KEYS, elem_id="review-record")
                facts = gr.HTML(elem_id="review-facts")
                alike = gr.Button(mark("review.find_similar"), size="sm", elem_id="review-alike")
                similar = gr.HTML(js_on_load=PICK, elem_id="review-similar")
    recipe = RecipeView("review")
    outputs = [place, trouble, progress, listing, record, facts, similar, editing]
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}

    def shown(
        words: Words, at: Place, said: Any = "", edit: bool = False, given: Any = None, wrong: Any = ()
    ) -> list[Any]:
        queue = queues.get(at.source, at.part)
        item = queue.items.get(at.row)
        at.shown += 1  # gradio patches HTML in place, which moves typed text to other fields; another tag is drawn anew
        row = show_row(words, queue, item, edit, given or {}, wrong)
        return [
            at,
            said,
            show_progress(words, queue),
            show_list(words, queue, at),
            tag(("div", "section")[at.shown % 2], row),
            show_facts(words, item),
            "",
            gr.Row(visible=edit),
        ]

    def listed(request: gr.Request) -> list[Any]:
        wanted = request.query_params.get("source", "")
        words = words_of(request)
        choices = reviewable(board)
        filters = [(words("review.filter_all"), "all")]
        for name in FILTERS[1:]:
            known = f"review.state_{name}" if name not in ("stale", "invalid") else f"review.filter_{name}"
            filters.append((words(known), name))
        first = wanted or (choices[0] if choices else None)
        return [gr.Dropdown(choices=choices, value=first), gr.Dropdown(choices=filters, value="all")]

    def opened(name: str | None, percent: float | None, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            if not name:
                raise Refusal("review.nothing", "source")
            share = min(max(percent or 100, 1), 100) / 100
            at = Place(name, share, row=queues.get(name, share).first_open())
            command = shlex.join(["forge-cli", "data", "review", name])
            text = board.path(name).read_text(encoding="utf-8") if name.endswith((".yaml", ".yml")) else ""
            return [*shown(words, at), gr.Column(visible=True), *RecipeView.show(text, command)]
        except Exception as error:
            html = show_trouble(words, trouble_of(words, words("review.failed_open"), error))
            return [
                Place(),
                html,
                *[gr.skip()] * (len(outputs) - 2),
                gr.Column(visible=False),
                *RecipeView.show("", ""),
            ]

    def acted(act: Callable[[Queue, Place, str, dict[str, str], Words], list[Any]]) -> Callable[..., list[Any]]:
        """A handler that decides about the row the reader saw, or shows the row again when that is another one."""

        def handle(at: Place, author: str, seen: str, request: gr.Request) -> list[Any]:
            words = words_of(request)
            try:
                queue = queues.get(at.source, at.part)
                told = json.loads(seen or "{}")
                with queue.lock:
                    if told.get("row") != at.row:
                        return shown(words, at)
                    return act(queue, at, author.strip(), told.get("fields", {}), words)
            except Exception as error:
                html = show_trouble(words, trouble_of(words, words("review.failed_decide"), error))
                return [at, html, *[gr.skip()] * (len(outputs) - 2)]

        return handle

    def decider(state: State) -> Callable[..., list[Any]]:
        def act(queue: Queue, at: Place, author: str, fields: dict[str, str], words: Words) -> list[Any]:
            check_author(author)
            following = queue.step(at, 1)
            queue.decide(at, state, author)
            at.row = following
            return shown(words, at)

        return acted(act)

    def mover(by: int) -> Callable[..., list[Any]]:
        def act(queue: Queue, at: Place, author: str, fields: dict[str, str], words: Words) -> list[Any]:
            at.row = queue.step(at, by)
            return shown(words, at)

        return acted(act)

    def edit(queue: Queue, at: Place, author: str, fields: dict[str, str], words: Words) -> list[Any]:
        check_author(author)
        return shown(words, at, edit=True)

    def saved(queue: Queue, at: Place, author: str, fields: dict[str, str], words: Words) -> list[Any]:
        check_author(author)
        new, wrong = edited(words, queue, at, fields)
        if wrong:
            return shown(words, at, edit=True, given=fields, wrong=[words("review.not_saved"), *wrong])
        following = queue.step(at, 1)
        queue.decide(at, "edited", author, new)
        at.row = following
        return shown(words, at)

    def undone(queue: Queue, at: Place, author: str, fields: dict[str, str], words: Words) -> list[Any]:
        check_author(author)
        row = queue.undo(at, author)
        at.row = row or at.row
        return shown(words, at, tag("p", words("review.undone" if row else "review.nothing_undo"), role="status"))

    def picked(at: Place, request: gr.Request, event: gr.EventData) -> list[Any]:
        at.row = str(event.value)
        return shown(words_of(request), at)

    def filtered(at: Place, kept: str, text: str, request: gr.Request) -> list[Any]:
        queue = queues.get(at.source, at.part)
        at.filter, at.search = kept, text
        ids = queue.ids(at)
        at.row = at.row if at.row in ids or not ids else ids[0]
        return shown(words_of(request), at)

    def likenesses(at: Place, request: gr.Request) -> Safe:
        return show_similar(words_of(request), queues.get(at.source, at.part), at.row)

    def told_keys(request: gr.Request) -> Safe:
        return tag("p", words_of(request)("review.keys_text"), role="status")

    on_load(listed, [source, kept])
    opening.click(opened, [source, part], [*outputs, work, *recipe.outputs], **{**quiet, "queue": True})
    inputs = [place, author, seen]
    act = {**quiet, "js": SEEN, "trigger_mode": "multiple"}  # gradio drops clicks until an answer is done with
    acts = {
        "previous": mover(-1), "next": mover(1), "accept": decider("accepted"), "reject": decider("rejected"),
        "skip": decider("skipped"), "edit": acted(edit), "undo": acted(undone),
    }  # fmt: skip
    for name, button in buttons.items():
        button.click(acts[name], inputs, outputs, **act)
    save.click(acted(saved), inputs, outputs, **act)
    back.click(mover(0), inputs, outputs, **act)
    for rows in (listing, similar):
        rows.select(picked, place, outputs, **quiet)
    gr.on([kept.input, search.submit], filtered, [place, kept, search], outputs, **quiet)
    alike.click(likenesses, place, similar, **quiet)
    keys.click(told_keys, None, trouble, **quiet)
