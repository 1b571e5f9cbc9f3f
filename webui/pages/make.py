"""The page Make data: a recipe as form and text, a preview, what it costs, and a run that goes on without the page."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from llmforge.datagen.generate import estimate
from llmforge.errors import ForgeError, RecipeError
from llmforge.webui.amounts import duration
from llmforge.webui.board import Board
from llmforge.webui.data_table import known_models
from llmforge.webui.jobs import Job, find_job, start_job
from llmforge.webui.making import (
    FIELDS,
    Draft,
    Progress,
    fields_of,
    folder_of,
    new_draft,
    open_draft,
    read_recipe,
    save_draft,
    values_of,
    with_field,
)
from llmforge.webui.markup import Safe, tag
from llmforge.webui.poll import on_load, on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.recipes_here import dataset_recipes
from llmforge.webui.words import Words, mark, words_of

COUNTS = ("answers", "parsed", "schema_ok", "checks_ok", "duplicate", "accepted", "rejected", "open")
NUMBERS = ("rows", "teacher.temperature", "teacher.max_tokens", "teacher.parallel", "teacher.budget_usd",
           "teacher.budget_tokens")  # fmt: skip
WHOLE = ("rows", "teacher.max_tokens", "teacher.parallel", "teacher.budget_tokens")
PREVIEWED = 3
_followed: dict[str, Progress] = {}  # ledgers that pages look at, each read once


def build(board: Board) -> None:
    """What stands on the page."""
    path = gr.State("")
    gr.HTML(tag("p", Safe(str(mark("make.intro"))), class_="calm"))
    with gr.Row():
        recipe = gr.Dropdown(
            [], label=mark("make.recipe"), info=mark("make.recipe_info"), elem_id="make-recipe", scale=3
        )
        fresh = gr.Textbox(label=mark("make.new_name"), elem_id="make-new-name", scale=2)
        new = gr.Button(mark("make.new"), elem_id="make-new", scale=0, min_width=100)
    said = gr.HTML(elem_id="make-said")
    with gr.Column(visible=False, elem_id="make-form") as form:
        with gr.Row():
            fields = {key: _field(key) for key in FIELDS[:4]}
        with gr.Row():
            fields |= {key: _field(key) for key in FIELDS[4:]}
        with gr.Row():
            prompt = gr.Textbox(label=mark("make.prompt"), lines=9, max_lines=20, elem_id="make-prompt")
            schema = gr.Code(language="json", label=mark("make.schema"), lines=9, max_lines=20, elem_id="make-schema")
        with gr.Accordion(mark("make.text"), open=False, elem_id="make-text"):
            text = gr.Code(language="yaml", label="YAML", lines=12, max_lines=40)
        with gr.Row(elem_classes="actions"):
            buttons = {
                name: gr.Button(
                    mark(f"make.{name}"), size="sm", variant="primary" if name == "resume" else "secondary",
                    elem_id=f"make-{name}",
                )
                for name in ("check", "estimate", "preview", "resume", "stop", "convert")
            }  # fmt: skip
        result = gr.HTML(elem_id="make-result")
        status = gr.HTML(elem_id="make-status")
    view = RecipeView("make")
    timer = gr.Timer(2)
    everything = [*fields.values(), prompt, schema, text]

    def opened(request: gr.Request) -> list[Any]:
        found = dataset_recipes(board)
        wanted = request.query_params.get("recipe")
        models = ["", *known_models(board)]
        return [gr.Dropdown(choices=found, value=wanted), gr.Dropdown(choices=models)]

    def filled(draft: Draft) -> list[Any]:
        command = shlex.join(["forge-cli", "data", "generate", draft.path])
        values = [*fields_of(draft.text), draft.prompt, draft.schema, draft.text]
        return [draft.path, "", gr.Column(visible=True), *values, "", *RecipeView.show(draft.text, command)]

    def loaded(name: str | None, request: gr.Request) -> list[Any]:
        if not name:
            return [gr.skip()] * (len(everything) + 6)
        return shown(request, lambda: open_draft(board, name or ""))

    def begun(name: str, request: gr.Request) -> list[Any]:
        return shown(request, lambda: new_draft(board, name.strip()))

    def shown(request: gr.Request, make: Any) -> list[Any]:
        words = words_of(request)
        try:
            return filled(make())
        except Exception as error:
            wrong = show_trouble(words, trouble_of(words, words("make.failed_open"), error))
            return [gr.skip(), wrong, *[gr.skip()] * (len(everything) + 4)]

    def typed(key: str) -> Any:
        def changed(value: Any, now: str) -> Any:
            try:
                return with_field(now, key, value)
            except RecipeError:
                return gr.skip()  # the check says what is wrong with the text

        return changed

    def retyped(now: str) -> list[Any]:
        return [*fields_of(now), now]

    def saved(place: str, asked: str, shape: str, now: str) -> str:
        if not place:
            raise RecipeError("recipe: missing")
        save_draft(board, Draft(place, now, asked, shape or ""))
        return place

    def acting(what: str) -> Any:
        def act(place: str, asked: str, shape: str, now: str, request: gr.Request) -> Iterator[Any]:
            words = words_of(request)
            try:
                saved(place, asked, shape, now)
                recipe, rows = read_recipe(board, place)
                if what == "check":
                    yield tag("p", words("make.fine", n=rows), class_="good", role="status")
                elif what == "estimate":
                    yield _estimated(words, estimate(recipe), recipe.teacher, _pace(board, place, now), rows)
                else:
                    extra = ["--preview", str(PREVIEWED)] if what == "preview" else []
                    start_job(board, _name(place), ["data", "generate", place, *extra])
                    yield ""
            except Exception as error:
                key = "make.failed_check" if what in ("check", "estimate") else "make.failed_start"
                yield show_trouble(words, trouble_of(words, words(key), error))

        return act

    def converted(place: str, request: gr.Request) -> Any:
        words = words_of(request)
        try:
            start_job(board, f"{_name(place)}-convert", ["data", "convert", place])
        except ForgeError as error:
            return show_trouble(words, trouble_of(words, words("make.failed_start"), error))
        return ""

    def stopped(place: str) -> None:
        if job := find_job(board, _name(place)):
            job.stop()

    def standing(request: gr.Request, place: str, now: str) -> list[Any]:
        return [_status(board, words_of(request), place, now) if place else Safe("")]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = [path, said, form, *everything, result, *view.outputs]
    on_load(opened, [recipe, fields["teacher.model"]])
    recipe.change(loaded, recipe, outputs, **quiet)
    gr.on([new.click, fresh.submit], begun, fresh, outputs, **quiet)
    for key, field in fields.items():
        field.input(typed(key), [field, text], text, **quiet)
    text.input(retyped, text, [*fields.values(), view.recipe], **quiet)
    inputs = [path, prompt, schema, text]
    for name in ("check", "estimate", "preview", "resume"):
        buttons[name].click(acting(name), inputs, result, **quiet)
    buttons["convert"].click(converted, path, result, **quiet)
    buttons["stop"].click(stopped, path, None, **quiet)
    on_tick(timer, standing, [path, text], [status])


def _field(key: str) -> Any:
    label, id = mark(f"make.field_{key}"), f"make-{key.replace('.', '-')}"
    if key == "teacher.model":
        return gr.Dropdown([], label=label, allow_custom_value=True, elem_id=id)
    if key in NUMBERS:
        return gr.Number(None, label=label, precision=0 if key in WHOLE else None, elem_id=id, min_width=130)
    return gr.Textbox(label=label, elem_id=id, max_lines=1)


def _name(place: str) -> str:
    return f"make-{place}"


def _pace(board: Board, place: str, text: str) -> float | None:
    """Seconds a row took so far; None before a first one."""
    job, work = find_job(board, _name(place)), folder_of(board, text)
    if job is None or work is None:
        return None
    progress = _followed.setdefault(str(work.ledger_path), Progress(work.ledger_path))
    progress.refresh()
    done = sum(row.is_done for row in progress.history.rows.values())
    return job.took_s / done if done else None


def _estimated(words: Words, found: dict[str, Any], teacher: Any, pace: float | None, rows: int) -> Safe:
    """Tokens, time and money."""
    measured = found["measured_rows"]
    basis = words("make.basis_measured", n=measured) if measured else words("make.basis_guessed")
    tokens = {"tokens_in": round(found["tokens_in_per_row"]), "tokens_out": round(found["tokens_out_per_row"])}
    lines = [tag("p", words("make.estimate_line", rows=found["rows"], basis=basis, **tokens))]
    if pace:
        lines.append(tag("p", words("make.estimate_time", time=duration(words, pace * rows))))
    if teacher.base_url and (usd := found["usd"].get(teacher.model)) is not None:
        lines.append(tag("p", words("make.estimate_cost", name=teacher.model, usd=f"{usd:.4f}")))
    elif not teacher.base_url:
        lines.append(tag("p", words("make.estimate_free"), class_="good"))
        priced = sorted(found["usd"].items(), key=lambda item: item[1])
        lines.append(
            tag(
                "ul", *(tag("li", words("make.estimate_cost", name=name, usd=f"{usd:.4f}")) for name, usd in priced[:5])
            )
        )
    if teacher.budget_usd is not None:
        lines.append(tag("p", words("make.estimate_budget", usd=f"{teacher.budget_usd:g}")))
    return tag("div", *lines, class_="card")


def _status(board: Board, words: Words, place: str, text: str) -> Safe:
    """How far the rows are, why some were rejected, the newest, and the log."""
    job, work = find_job(board, _name(place)), folder_of(board, text)
    if work is None or (job is None and not work.ledger_path.is_file()):
        return tag("p", words("make.state_draft"), class_="calm")
    progress = _followed.setdefault(str(work.ledger_path), Progress(work.ledger_path))
    progress.refresh()
    total = 0
    with contextlib.suppress(ForgeError):
        total = int(values_of(text).get("rows") or 0)
    counts = progress.counts(total)
    done, rows = counts["accepted"] + counts["rejected"], counts["rows"]
    told = words("make.of_rows", done=done, all=rows)
    tiles = [_tile(words, name, f"{counts[name]:,}") for name in COUNTS]
    tiles.append(_tile(words, "tokens", f"{counts['tokens_in'] + counts['tokens_out']:,}"))
    tiles.append(_tile(words, "cost_usd", f"{counts['cost_usd']:.4f}"))
    causes = [tag("li", f"{cause}: {count:,}") for cause, count in list(counts["causes"].items())[:8]]
    newest = [
        tag(
            "article",
            tag("p", f"{record['instruction']}\n{record['input']}".strip()),
            tag("p", tag("strong", _answer(record["output"]))),
            class_="card",
        )
        for record in progress.newest()
    ]
    bar = tag("progress", value=done, max=max(rows, 1), aria_label=told)
    review = (
        tag("a", words("make.review"), href=f"review?source={place}", class_="plain") if counts["accepted"] else None
    )
    return tag(
        "div",
        _state(words, job),
        bar,
        tag("p", told, " ", review),
        tag("div", *tiles, class_="tiles"),
        tag("details", tag("summary", words("make.causes")), tag("ul", *causes)) if causes else None,
        tag("h3", words("make.newest")) if newest else None,
        tag("div", *newest, class_="rows made"),
        tag("details", tag("summary", words("make.log")), tag("pre", job.log(20))) if job else None,
        _converted(board, words, place),
        class_="progress",
    )


def _state(words: Words, job: Job | None) -> Safe:
    if job is None:
        return tag("p", words("make.state_draft"), class_="calm")
    state = job.state
    if state == "running":
        return tag("p", words("make.state_running", time=_clock(job.started_at)), role="status")
    if state == "paused":
        why = job.log(1).removeprefix("forge-cli: ")
        return tag("p", words("make.state_paused", why=why), class_="warn", role="status")
    kind = {"done": "good", "failed": "bad", "lost": "bad"}.get(state, "calm")
    log = tag("pre", job.log(8)) if state == "failed" else None
    return tag("div", tag("p", words(f"make.state_{state}"), class_=kind, role="status"), log)


def _converted(board: Board, words: Words, place: str) -> Safe | None:
    job = find_job(board, f"{_name(place)}-convert")
    if job is None:
        return None
    kind = {"done": "good", "failed": "bad"}.get(job.state, "calm")
    state = words(f"make.state_{job.state}", time=_clock(job.started_at), why=job.log(1))
    told = words("make.converted", state=state)
    return tag("div", tag("p", told, class_=kind), tag("pre", job.log(8)))


def _tile(words: Words, name: str, value: str) -> Safe:
    return tag("div", tag("strong", value), tag("span", words(f"make.count_{name}")), class_="tile")


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _answer(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
