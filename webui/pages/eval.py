"""The page Eval: predictions of two models over the same rows, scores with intervals, each row with both answers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from llmforge.errors import ForgeError, RecipeError
from llmforge.eval.compare import Comparison, as_csv, as_json_lines, compare
from llmforge.runs import atomic_write
from llmforge.webui import servers
from llmforge.webui.board import Board
from llmforge.webui.data_table import entries, known_models
from llmforge.webui.eval_view import CHANGES, show_pair, show_rows, show_scores, show_tables
from llmforge.webui.jobs import find_job, start_job
from llmforge.webui.markup import PICK, Safe, tag
from llmforge.webui.poll import on_load, on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.uploads import clean_name
from llmforge.webui.words import Words, mark, words_of

PREDICTIONS, RECIPE = "generated_predictions.jsonl", "predict_recipe.yaml"
FOLDERS = ("runs", "work", "saves")
JOB = "predict"


def build(board: Board) -> None:
    """What stands on the page."""
    found = gr.State(None)
    gr.HTML(tag("p", Safe(str(mark("eval.intro"))), class_="calm"))
    with gr.Row():
        files = [
            gr.Dropdown(
                [], label=mark(f"eval.{side}"), info=mark("eval.file_info"), allow_custom_value=True,
                elem_id=f"eval-{side}", scale=2,
            )
            for side in ("before", "after")
        ]  # fmt: skip
        start = gr.Button(mark("eval.compare"), variant="primary", elem_id="eval-compare", scale=0, min_width=120)
    said = gr.HTML(elem_id="eval-said")
    with gr.Column(visible=False, elem_id="eval-result") as result:
        scores = gr.HTML(elem_id="eval-scores")
        with gr.Row():
            metric = gr.Dropdown([], label=mark("eval.metric"), elem_id="eval-metric")
            kind = gr.Radio(["all", *CHANGES], value="all", label=mark("eval.kind"), elem_id="eval-kind")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                rows = gr.HTML(js_on_load=PICK, elem_id="eval-rows")
            with gr.Column(scale=2, min_width=320):
                pair = gr.HTML(elem_id="eval-pair")
        with gr.Row(elem_classes="actions"):
            as_table = gr.DownloadButton(mark("eval.export_csv"), size="sm", elem_id="eval-csv")
            as_lines = gr.DownloadButton(mark("eval.export_jsonl"), size="sm", elem_id="eval-jsonl")
    _making(board)
    recipe = RecipeView("eval")

    def opened(request: gr.Request) -> list[Any]:
        words = words_of(request)
        there = predictions(board)
        wanted = [request.query_params.get(name) for name in ("before", "after")]
        guess = [there[1], there[0]] if len(there) > 1 else [*there, None, None]
        values = [want or first for want, first in zip(wanted, guess, strict=False)]
        kinds = [(words(f"eval.rows_{name}"), name) for name in ("all", *CHANGES)]
        empty = tag("p", words("eval.empty"), class_="calm") if not there else ""
        named = [(path.removesuffix(f"/{PREDICTIONS}"), path) for path in there]
        drops = [gr.Dropdown(choices=named, value=value) for value in values]
        return [*drops, gr.Radio(choices=kinds, value="all"), empty]

    def compared(one: str | None, two: str | None, request: gr.Request) -> Iterator[list[Any]]:
        words = words_of(request)
        yield [gr.skip(), tag("p", words("eval.comparing"), role="status"), *[gr.skip()] * 9]
        try:
            if not one or not two:
                raise RecipeError(words("eval.choose_two"))
            before, after = (board.path(name, must_exist=True) for name in (one, two))
            joined = compare(before, after)
            names = joined.metrics
            exports = _export(board, joined, one, two)
        except Exception as error:
            wrong = show_trouble(words, trouble_of(words, words("eval.failed"), error))
            yield [None, wrong, gr.Column(visible=False), *[gr.skip()] * 8]
            return
        first = names[0] if names else ""
        drop = gr.Dropdown(choices=names, value=first or None)
        shown = tag("div", show_scores(words, joined, one, two), show_tables(words, after))
        listed = show_rows(words, joined, first, "all", joined.pairs[0].row)
        one_row = show_pair(words, joined.pairs[0])
        texts = RecipeView.show(_text(after.parent / RECIPE), _commands(before, after))
        yield [joined, "", gr.Column(visible=True), shown, drop, listed, one_row, *exports, *texts]

    def listed(at: Comparison | None, metric: str | None, kind: str, request: gr.Request) -> Any:
        return show_rows(words_of(request), at, metric or "", kind, -1) if at else gr.skip()

    def picked(
        at: Comparison | None, metric: str | None, kind: str, request: gr.Request, event: gr.EventData
    ) -> list[Any]:
        words = words_of(request)
        chosen = next((one for one in at.pairs if str(one.row) == str(event.value)), None) if at else None
        if at is None or chosen is None:
            return [gr.skip(), gr.skip()]
        return [show_rows(words, at, metric or "", kind, chosen.row), show_pair(words, chosen)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [*files, kind, said])
    outputs = [found, said, result, scores, metric, rows, pair, as_table, as_lines, *recipe.outputs]
    start.click(compared, files, outputs, **quiet)
    gr.on([metric.input, kind.input], listed, [found, metric, kind], rows, **quiet)
    rows.select(picked, [found, metric, kind], [rows, pair], **quiet)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _commands(*files: Path) -> str:
    """What made the files, where their folders say it."""
    recipes = [path.parent / RECIPE for path in files]
    return "\n".join(shlex.join(["forge-cli", "predict", str(path)]) for path in recipes if path.is_file())


def predictions(board: Board) -> list[str]:
    """Files of predictions in the project, the newest first."""
    found = [path for folder in FOLDERS for path in (board.root / folder).glob(f"**/{PREDICTIONS}")]
    return [board.shown(path) for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def _export(board: Board, joined: Comparison, one: str, two: str) -> list[Any]:
    """Both files of an export, in the project's work/eval."""
    folder = board.root / "work" / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    name = clean_name(f"{Path(one).parent.name}-{Path(two).parent.name}")
    rows = list(joined.as_rows())
    table, lines = folder / f"{name}.csv", folder / f"{name}.jsonl"
    atomic_write(table, as_csv(rows))
    atomic_write(lines, as_json_lines(rows))
    return [str(table), str(lines)]


def _making(board: Board) -> None:
    """A run or model answers a test set, in a process of its own."""
    with gr.Accordion(mark("eval.make"), open=False, elem_id="eval-make"):
        gr.HTML(tag("p", Safe(str(mark("eval.make_intro"))), class_="calm"))
        with gr.Row():
            model = gr.Dropdown([], label=mark("eval.make_model"), allow_custom_value=True, elem_id="eval-model")
            data = gr.Dropdown([], label=mark("eval.make_data"), elem_id="eval-data")
            most = gr.Number(100, label=mark("eval.make_rows"), minimum=1, precision=0, elem_id="eval-most")
        with gr.Row(elem_classes="actions"):
            go = gr.Button(mark("eval.make_start"), variant="primary", size="sm", elem_id="eval-make-start")
            halt = gr.Button(mark("eval.make_stop"), size="sm", elem_id="eval-make-stop")
        wrong = gr.HTML(elem_id="eval-make-wrong")
        status = gr.HTML(elem_id="eval-make-status")
    timer = gr.Timer(2)

    def opened() -> list[Any]:
        models = servers.startable(board, known_models(board))
        try:
            names = list(entries(board))
        except RecipeError:
            names = []  # the page Data says what is wrong
        first = next((name for name in names if "test" in name), names[0] if names else None)
        return [
            gr.Dropdown(choices=models, value=models[0] if models else None),
            gr.Dropdown(choices=names, value=first),
        ]

    def started(name: str | None, data: str | None, most: float | None, request: gr.Request) -> Any:
        words = words_of(request)
        try:
            if not name or not data:
                raise RecipeError(words("eval.choose_make"))
            is_run = (board.root / name).is_dir() and board.path(name, must_exist=True).is_dir()
            asked = [name] if is_run else [f"model_name_or_path={name}", "template=auto"]
            out = f"work/predictions/{clean_name(name)}-{clean_name(data)}"
            settings = ["dataset=[]", f"eval_dataset={data}", f"output_dir={out}", "do_sample=false"]
            if most:
                settings.append(f"max_samples={int(most)}")
            start_job(board, JOB, ["predict", *asked, *settings])
        except ForgeError as error:
            return show_trouble(words, trouble_of(words, words("eval.failed_make"), error))
        return ""

    def stopped() -> None:
        if job := find_job(board, JOB):
            job.stop()

    def standing(request: gr.Request) -> list[Any]:
        return [_job_status(board, words_of(request))]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [model, data])
    go.click(started, [model, data, most], wrong, **quiet)
    halt.click(stopped, None, None, **quiet)
    on_tick(timer, standing, [], [status])


def _job_status(board: Board, words: Words) -> Safe:
    job = find_job(board, JOB)
    if job is None:
        return Safe("")
    out = next(word.partition("=")[2] for word in job.words if word.startswith("output_dir="))
    name = Path(out).name
    path = board.root / out / PREDICTIONS
    if job.state == "running":
        rows = path.read_bytes().count(b"\n") if path.is_file() else 0
        return tag("p", words("eval.make_running", name=name, n=rows), role="status")
    if job.state == "done":
        return tag("p", words("eval.make_done", name=name, path=board.shown(path)), class_="good", role="status")
    told = words("eval.make_stopped" if job.state == "stopped" else "eval.make_failed", name=name)
    return tag("div", tag("p", told, class_="bad", role="status"), tag("pre", job.log(12)))
