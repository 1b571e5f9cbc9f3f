"""Fine-tune: a wizard from model to run, whose form is a recipe; every key of the schema is under Advanced."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr

from llmforge.config.keys import Key, keys, keys_of
from llmforge.data.example import RowReport
from llmforge.data.inspect import natural_stage
from llmforge.data.read import iter_examples
from llmforge.data.registry import resolve_dataset
from llmforge.errors import RecipeError
from llmforge.model.sources import local_folder
from llmforge.runs import RunDir
from llmforge.webui import choices, form, launch
from llmforge.webui.board import Board
from llmforge.webui.checking import Found, check_text
from llmforge.webui.data_view import Reader, show_examples
from llmforge.webui.devices import Device, devices
from llmforge.webui.estimate import Guess, guess
from llmforge.webui.fetching import Fetching
from llmforge.webui.index import index_of, recipe_of
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.train_view import FIX, show_check, show_facts
from llmforge.webui.words import Words, mark, words_of

STEP_IDS = {"model": 1, "data": 2, "method": 3, "check": 4, "run": 5}
MOST_SHOWN = 12  # advanced keys drawn at once; a search finds the others
GO = "(address) => { if (address) setTimeout(() => { location.href = address; }, 700); }"
LISTS = ("dataset",)
NEEDED = ("model_name_or_path", "dataset")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build(board: Board) -> None:
    """What stands on the page."""
    _Page(board).build()


class _Page:
    """The wizard: `given` is the recipe as a mapping, every field and the YAML text are views of it."""

    def __init__(self, board: Board):
        self.board, self.index, self.fetching = board, index_of(board), Fetching(board)
        self.fields: dict[str, Any] = {}

    def build(self) -> None:
        first = form.preset({}, "standard")
        self.given = gr.State(first)
        self.checked = gr.State("")  # the text that was checked and found fine
        self.problems = gr.State([])  # what the fixes of the last check lead to
        self.errors = gr.State({})  # key -> what is wrong with it, by the last check
        with gr.Walkthrough(selected=1, elem_id="wizard") as self.steps:
            with gr.Step(mark("train.step.model"), id=1):
                self._model()
            with gr.Step(mark("train.step.data"), id=2):
                self._data()
            with gr.Step(mark("train.step.method"), id=3):
                self._method(first)
            with gr.Step(mark("train.step.check"), id=4):
                self._check()
            with gr.Step(mark("train.step.run"), id=5):
                self._run()
        with gr.Accordion(mark("common.show_recipe"), open=False, elem_id="train-recipe"):
            self.yaml = gr.Code(
                form.to_yaml(first), language="yaml", label=mark("train.yaml"), interactive=True, max_lines=30
            )
            self.yaml_wrong = gr.HTML(elem_id="train-yaml-wrong")
        with gr.Accordion(mark("common.show_command"), open=False, elem_id="train-command"):
            self.command = gr.Code(language="shell", label=mark("common.command"), interactive=False)
        self._wire()

    # The steps

    def _model(self) -> None:
        with gr.Row():
            self.fields["model_name_or_path"] = gr.Dropdown(
                [], value=None, label=mark("train.field.model"), info=mark("train.info.model_name_or_path"),
                allow_custom_value=True, elem_id="field-model_name_or_path", scale=3,
            )  # fmt: skip
            self.fields["template"] = gr.Dropdown(
                [(mark("train.template_auto"), "auto"), *((n, n) for n in _templates() if n != "auto")], value="auto",
                label=mark("train.field.template"), info=mark("train.info.template"), elem_id="field-template", scale=1,
            )  # fmt: skip
        self.model_told = gr.HTML(elem_id="train-model-told")
        with gr.Row():
            self.fetch = gr.Button(mark("train.fetch"), visible=False, elem_id="train-fetch")
            self.next_data = gr.Button(mark("train.next"), variant="primary", elem_id="next-data")
        self.fetch_timer = gr.Timer(1.5, active=False)

    def _data(self) -> None:
        self.fields["dataset"] = gr.Dropdown(
            [], value=[], multiselect=True, allow_custom_value=True, label=mark("train.field.dataset"),
            info=mark("train.info.dataset"), elem_id="field-dataset",
        )  # fmt: skip
        self.data_told = gr.HTML(elem_id="train-data-told")
        with gr.Row():
            for key in ("val_size", "cutoff_len", "max_samples"):
                self._text(key)
        with gr.Row():
            back = gr.Button(mark("train.back"))
            self.next_method = gr.Button(mark("train.next"), variant="primary", elem_id="next-method")
        back.click(partial(_go, 1), None, self.steps, **QUIET)

    def _method(self, first: form.Given) -> None:
        self.preset = gr.Radio(
            [(mark(f"train.preset.{name}"), name) for name in form.PRESETS], value="standard",
            label=mark("train.preset"), info=mark("train.info.preset"), elem_id="train-preset",
        )  # fmt: skip
        with gr.Row():
            for key in ("stage", "finetuning_type"):
                options = keys()[key].choices or ()
                self.fields[key] = gr.Dropdown(
                    [(mark(f"train.{key}.{name}"), name) for name in options], value=first[key],
                    label=mark(f"train.field.{key}"), info=mark(f"train.info.{key}"), elem_id=f"field-{key}",
                )  # fmt: skip
        with gr.Row():
            for key in ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "lora_rank"):
                self._text(key, first.get(key))
        with gr.Accordion(mark("train.advanced"), open=False, elem_id="train-advanced"):
            with gr.Row():
                self.search = gr.Textbox(
                    label=mark("train.search"), placeholder=mark("train.search_hint"), max_lines=1, scale=3,
                    elem_id="advanced-search",
                )  # fmt: skip
                groups = [(mark(f"train.group.{name}"), name) for name in keys_of("train")]
                self.group = gr.Dropdown(
                    [(mark("train.group.all"), ""), *groups], value="train", label=mark("train.group"), scale=1
                )
            self._advanced()
        with gr.Row():
            back = gr.Button(mark("train.back"))
            self.next_check = gr.Button(mark("train.check"), variant="primary", elem_id="next-check")
        back.click(partial(_go, 2), None, self.steps, **QUIET)

    def _text(self, key: str, value: Any = None) -> None:
        self.fields[key] = gr.Textbox(
            form.text_of(value if value is not None else form.PRESETS["standard"].get(key)),
            label=mark(f"train.field.{key}"), info=mark(f"train.info.{key}"), elem_id=f"field-{key}", max_lines=1,
            min_width=200,
        )  # fmt: skip

    def _check(self) -> None:
        self.report = gr.HTML(js_on_load=FIX, elem_id="train-report")
        with gr.Row():
            back = gr.Button(mark("train.back"))
            self.again = gr.Button(mark("train.check_again"), elem_id="check-again")
            self.next_run = gr.Button(mark("train.next"), variant="primary", interactive=False, elem_id="next-run")
        back.click(partial(_go, 3), None, self.steps, **QUIET)

    def _run(self) -> None:
        with gr.Row():
            self.name = gr.Textbox(
                label=mark("train.field.name"), info=mark("train.info.name"), max_lines=1, elem_id="field-name"
            )
            self.devices = gr.CheckboxGroup(
                [], label=mark("train.field.devices"), info=mark("train.info.devices"), elem_id="field-devices"
            )
        self.start_told = gr.HTML(elem_id="train-start-told")
        with gr.Row():
            back = gr.Button(mark("train.back"))
            self.start = gr.Button(mark("train.start"), variant="primary", interactive=False, elem_id="train-start")
        self.address = gr.State("")
        back.click(partial(_go, 4), None, self.steps, **QUIET)

    def _advanced(self) -> None:
        """Fields of the schema's other keys, drawn when they are searched for."""

        @gr.render(
            inputs=[self.search, self.group, self.given, self.errors],
            triggers=[self.search.change, self.group.change, self.preset.input, self.errors.change],
            show_progress="hidden",
        )
        def draw(
            search: str, group: str, given: form.Given, errors: dict[str, str], request: gr.Request
        ) -> None:  # fmt: skip
            words = words_of(request)
            found = form.advanced(search or "", group or "", str(given.get("stage", "sft")))
            if not found:
                gr.HTML(tag("p", words("train.no_key"), class_="calm"))
            for start in range(0, min(len(found), MOST_SHOWN), 3):
                with gr.Row():
                    for key in found[start : min(start + 3, MOST_SHOWN)]:
                        self._one(words, key, given, errors.get(key.name))
            if len(found) > MOST_SHOWN:
                gr.HTML(tag("p", words("train.more_keys", n=len(found) - MOST_SHOWN), class_="calm"))

    def _one(self, words: Words, key: Key, given: form.Given, wrong: str | None) -> None:
        """One key's field: a switch, a list of choices, or a line of text."""
        value = given.get(key.name, key.default)
        about: dict[str, Any] = {
            "label": key.name, "info": wrong or key.rule.help, "elem_id": f"advanced-{key.name}", "min_width": 240,
            "elem_classes": ["wrong"] if wrong else [], "interactive": True,
        }  # fmt: skip
        field: Any
        if form.is_switch(key):
            field = gr.Checkbox(bool(value), **about)
        elif key.choices is not None and not isinstance(key.default, list):
            field = gr.Dropdown([str(choice) for choice in key.choices], value=form.text_of(value) or None, **about)
        else:
            expected = form.expectation(words, key)
            field = gr.Textbox(form.text_of(value), placeholder=expected, max_lines=1, **about)
        field.input(
            self._setter(key.name, key.rule.help),
            [field, self.given],
            [self.given, self.yaml, self.command, field],
            trigger_mode="always_last",
            **QUIET,
        )

    # What happens

    def _wire(self) -> None:
        names = list(form.FIELDS)
        everything = [self.fields[name] for name in names]
        views = [self.given, self.yaml, self.command]
        gr.on(
            None, self._open, None,
            [*views, *everything, self.name, self.devices, self.model_told, self.fetch, self.data_told], **QUIET,
        )  # fmt: skip
        for name in names:
            field = self.fields[name]
            field.input(
                self._setter(name), [field, self.given], [*views, field], trigger_mode="always_last",
                **QUIET,
            )  # fmt: skip
        self.preset.input(self._preset, [self.preset, self.given], [*views, *everything], **QUIET)
        self.yaml.input(
            self._from_yaml, [self.yaml, self.given], [self.given, self.yaml_wrong, self.command, *everything],
            trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        model = self.fields["model_name_or_path"]
        model.change(self._tell_model, model, [self.model_told, self.fetch], **QUIET)
        self.fields["dataset"].change(self._tell_data, [self.fields["dataset"]], self.data_told, **QUIET)
        self.fetch.click(self._fetch, model, [self.model_told, self.fetch, self.fetch_timer], **QUIET)
        self.fetch_timer.tick(self._fetched, model, [self.model_told, self.fetch, self.fetch_timer], **QUIET)
        asked = [self.given, self.devices, self.yaml, *everything]
        results = [
            *views, self.steps, self.report, self.problems, self.errors, self.checked, self.next_run, self.start,
            *everything,
        ]  # fmt: skip
        for button, step, target in ((self.next_data, "model", 2), (self.next_method, "data", 3)):
            its = [self.fields[name] for name in form.STEPS[step]]
            button.click(self._goer(step, target), its, [self.steps, *its], **QUIET)
        self.next_check.click(self._check_now, asked, results, **QUIET)
        self.again.click(self._check_now, asked, results, **QUIET)
        self.report.select(self._fix, [self.problems, self.given], [*views, *everything], **QUIET).then(
            self._check_now, asked, results, **QUIET
        )
        self.next_run.click(self._name_it, [self.given, self.name], [self.steps, self.name], **QUIET)
        self.start.click(
            self._start, [self.name, self.devices, self.given, self.checked], [self.start_told, self.address], **QUIET
        ).success(
            None, self.address, None, js=GO
        )  # fmt: skip

    def _open(self, request: gr.Request) -> list[Any]:
        """The form when the page opens: fresh, or a run's recipe to change."""
        words = words_of(request)
        given = form.preset({}, "standard")
        data = str(request.query_params.get("data", ""))
        if data:
            given["dataset"] = [data]
        if cloned := str(request.query_params.get("clone", "")):
            with contextlib.suppress(RecipeError):  # a run that is gone: the form is as new
                given = self._cloned(RunDir(self.board.path(cloned, must_exist=True)))
        told = self._tell_model(str(given.get("model_name_or_path") or ""), request)
        known = {
            "model_name_or_path": gr.Dropdown(
                choices.model_choices(words, self.board), value=given.get("model_name_or_path")
            ),
            "dataset": gr.Dropdown(choices.dataset_names(self.board), value=_list(given.get("dataset"))),
        }
        fields = [known.get(name, self._shown(name, given)) for name in form.FIELDS]
        boxes = gr.CheckboxGroup(
            [(_device_text(words, device), device.name) for device in devices()], value=[_best(devices()).name]
        )
        data_told = self._tell_data(_list(given.get("dataset")), request)
        return [given, form.to_yaml(given), self._command(given), *fields, "", boxes, *told, data_told]

    def _cloned(self, run: RunDir) -> form.Given:
        """A run's recipe as it was written, else what differs from the defaults of the resolved one."""
        written = run.path / launch.GIVEN
        if written.is_file():
            given, wrong = form.from_yaml(written.read_text(encoding="utf-8", errors="replace"))
            if not wrong:
                return form.ordered({key: value for key, value in given.items() if key not in form.HIDDEN})
        return form.without_defaults(recipe_of(run))

    def _shown(self, name: str, given: form.Given) -> Any:
        value = given.get(name, keys()[name].default)
        return _list(value) if name in LISTS else value if name in ("stage", "finetuning_type", "template") else (
            value if name == "model_name_or_path" else form.text_of(value)
        )  # fmt: skip

    def _everything(self, given: form.Given) -> list[Any]:
        return [self._shown(name, given) for name in form.FIELDS]

    def _command(self, given: form.Given) -> str:
        """The same as one line, without the board."""
        words = [f"{key}={shlex.quote(form.text_of(value))}" for key, value in given.items()]
        return "forge-cli train \\\n  " + " \\\n  ".join([*words, "output_dir=runs/NAME"])

    def _setter(self, name: str, help: str = "") -> Callable[..., list[Any]]:
        """Takes a key as it was typed: kept also when it is wrong, so that YAML and form stay the same thing."""

        def take(value: Any, given: form.Given, request: gr.Request) -> list[Any]:
            now = form.with_value(given, name, value)
            words = words_of(request)
            wrong = form.wrong(words, name, value)
            return [now, form.to_yaml(now), self._command(now), _marked(words, name, wrong, help)]

        return take

    def _goer(self, step: str, target: int) -> Callable[..., list[Any]]:
        """Goes on to the next step when the fields of this one hold what they may."""
        names = form.STEPS[step]

        def go(request: gr.Request, *values: Any) -> list[Any]:
            words = words_of(request)
            told = {name: form.wrong(words, name, value) for name, value in zip(names, values, strict=True)}
            for name, value in zip(names, values, strict=True):
                if name in NEEDED and not value:
                    told[name] = words(f"train.needed.{name}")
            marks = [_marked(words, name, wrong) for name, wrong in told.items()]
            return [gr.skip() if any(told.values()) else gr.Walkthrough(selected=target), *marks]

        return go

    def _preset(self, name: str, given: form.Given) -> list[Any]:
        now = form.preset(given, name)
        return [now, form.to_yaml(now), self._command(now), *self._everything(now)]

    def _from_yaml(self, text: str, before: form.Given, request: gr.Request) -> list[Any]:
        given, wrong = form.from_yaml(text)
        if wrong:
            return [before, tag("p", wrong, class_="bad", role="alert"), gr.skip(), *[gr.skip()] * len(form.FIELDS)]
        return [given, "", self._command(given), *self._everything(given)]

    def _tell_model(self, name: str, request: gr.Request) -> list[Any]:
        words = words_of(request)
        hidden = gr.Button(visible=False)
        if not name:
            return ["", hidden]
        if self.fetching.is_going(name):
            return [self.fetching.show(words, name), hidden]
        try:
            folder = local_folder(_model_config(name))
        except Exception as error:
            return [show_trouble(words, trouble_of(words, words("train.model_wrong"), error)), hidden]
        if folder is None:
            return [tag("p", words("train.must_fetch"), class_="note"), gr.Button(visible=True)]
        shape = choices.shape_of(folder)
        if shape is None or not shape.params:
            return ["", hidden]
        millions = f"{shape.params / 1e6:.3g}"
        return [tag("p", words("train.model_is", millions=millions, layers=shape.layers), class_="calm"), hidden]

    def _tell_data(self, names: list[str], request: gr.Request) -> Safe:
        return show_facts(words_of(request), names, {name: choices.count_rows(self.board, name) for name in names})

    def _fetch(self, name: str, request: gr.Request) -> list[Any]:
        try:
            self.fetching.start(name)
        except RecipeError as error:
            words = words_of(request)
            return [show_trouble(words, trouble_of(words, words("train.fetch_failed"), error)), gr.skip(), gr.skip()]
        return [self.fetching.show(words_of(request), name), gr.Button(visible=False), gr.Timer(active=True)]

    def _fetched(self, name: str, request: gr.Request) -> list[Any]:
        if self.fetching.is_going(name):
            return [self.fetching.show(words_of(request), name), gr.skip(), gr.skip()]
        failed = self.fetching.failure(words_of(request), name)
        told, button = self._tell_model(name, request)
        return [failed or told, button, gr.Timer(active=False)]

    def _check_now(
        self, before: form.Given, chosen: list[str], text: str, request: gr.Request, *values: Any
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Check what the fields hold now; a value that no key may have leads back to its field."""
        words = words_of(request)
        written, wrong = form.from_yaml(text)
        if wrong:
            yield [*[gr.skip()] * 3, gr.skip(), gr.skip(), [], {}, "", *[gr.Button(interactive=False)] * 2,
                   *[gr.skip()] * len(form.FIELDS)]  # fmt: skip
            return
        if written != before:  # typed into the text just now; the fields do not know it yet
            values = tuple(self._everything(written))
        given = written
        for name, value in zip(form.FIELDS, values, strict=True):
            given = form.with_value(given, name, value)
        views = [given, form.to_yaml(given), self._command(given)]
        off, same = gr.Button(interactive=False), [gr.skip()] * len(form.FIELDS)
        told = {name: form.wrong(words, name, value) for name, value in zip(form.FIELDS, values, strict=True)}
        if first := next((name for name in form.FIELDS if told[name]), None):
            step = next(step for step, names in form.STEPS.items() if first in names)
            marks = [_marked(words, name, told[name]) for name in form.FIELDS]
            yield [*views, gr.Walkthrough(selected=STEP_IDS[step]), "", [], {}, "", off, off, *marks]
            return
        checking = tag("p", words("train.checking"), class_="note", role="status")
        yield [*views, gr.Walkthrough(selected=4), checking, [], {}, "", off, off, *same]
        views = [gr.skip()] * 3
        try:
            found = check_text(self.board, given)
            preview = self._first_row(words, found, given)
            report = show_check(words, found, self._guess(found, given), self._device(chosen), preview, given)
        except Exception as error:
            failed = show_trouble(words, trouble_of(words, words("train.check_failed"), error))
            yield [*views, gr.skip(), failed, [], {}, "", off, off, *same]
            return
        fixes = [wrong.fixed for wrong in found.problems]
        errors = {wrong.key: wrong.message for wrong in found.problems}
        button = gr.Button(interactive=found.runs)
        marks = [_marked(words, name, errors.get(name)) for name in form.FIELDS]
        yield [*views, gr.skip(), report, fixes, errors, found.text if found.runs else "", button, button, *marks]

    def _first_row(self, words: Words, found: Found, given: form.Given) -> Safe | None:
        """The first row with what is learned of it marked; None where model or row are not here."""
        if found.recipe is None or not found.runs:
            return None
        try:
            entry = resolve_dataset(_list(given["dataset"])[0], str(self.board.data))
            report = RowReport(entry.name)
            rows = list(islice(iter_examples(entry, report, stage=natural_stage(entry)), 1))
            reader = Reader.of(str(given["model_name_or_path"]), found.recipe.data.cutoff_len)
            return show_examples(words, rows, RowReport(entry.name), reader)
        except RecipeError:
            return None

    def _guess(self, found: Found, given: form.Given) -> Guess:
        if found.recipe is None:
            return Guess()
        counts = [choices.count_rows(self.board, str(name)) for name in _list(given.get("dataset"))]
        rows = sum(count or 0 for count in counts) if counts and all(c is not None for c in counts) else None
        folder = local_folder(found.recipe.model)
        shape = choices.shape_of(folder) if folder else None
        return guess(found.recipe, rows, found.fine, shape, self._speed(str(given.get("model_name_or_path"))))

    def _speed(self, model: str) -> float | None:
        """Tokens per second of the newest run of the same model that logged any."""
        for row in self.index.runs():
            if Path(row.model).name == Path(model).name:
                points = self.index.curves.of(self.board.root / row.name / "trainer_log.jsonl").series
                if speeds := points.get("tokens_per_second"):
                    return sorted(value for _, value in speeds)[len(speeds) // 2]
        return None

    def _device(self, chosen: list[str]) -> Device | None:
        return next((device for device in devices() if device.name in (chosen or [])), None)

    def _fix(self, fixes: list[Any], given: form.Given, event: gr.EventData) -> list[Any]:
        now = fixes[event.number] if 0 <= event.number < len(fixes) and fixes[event.number] is not None else given
        return [now, form.to_yaml(now), self._command(now), *self._everything(now)]

    def _name_it(self, given: form.Given, name: str) -> list[Any]:
        proposed = _proposed(given)
        return [gr.Walkthrough(selected=5), name or launch.free_name(self.board, proposed)]

    def _start(self, name: str, chosen: list[str], given: form.Given, checked: str, request: gr.Request) -> list[Any]:
        words = words_of(request)
        if not checked or form.to_yaml(given) != checked:
            return [tag("p", words("train.check_first"), class_="bad", role="alert"), ""]
        try:
            cards = [device for device in chosen if device != "cpu"]
            recipe = checked if cards or len(devices()) == 1 else launch.with_key(checked, "device", "cpu")
            run = launch.start_run(self.board, name.strip(), recipe, cards or ["cpu"])
        except Exception as error:
            return [show_trouble(words, trouble_of(words, words("train.start_failed"), error)), ""]
        where = f"runs?run={self.board.shown(run.path)}"
        told = tag(
            "p", words("train.started"), " ", tag("a", words("train.watch"), href=where), class_="note", role="status"
        )
        return [told, where]


def _go(step: int) -> Any:
    return gr.Walkthrough(selected=step)


def _marked(words: Words, name: str, wrong: str | None, help: str = "") -> Any:
    """What stands under a field's name: its meaning, or what is wrong with it."""
    if wrong:
        return gr.update(info=wrong, elem_classes=["wrong"])
    return gr.update(info=help or words(f"train.info.{name}"), elem_classes=[])


def _templates() -> list[str]:
    from llmforge.data.templates.find import TEMPLATES

    return sorted(TEMPLATES)


def _model_config(name: str) -> Any:
    from llmforge.config.schema import ModelConfig

    return ModelConfig(model_name_or_path=name)


def _list(value: Any) -> list[str]:
    if not value:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [item if isinstance(item, str) else str(item.get("file_name", item)) for item in value]


def _proposed(given: form.Given) -> str:
    """A name out of data and method: report_classify_zh-lora."""
    data = _list(given.get("dataset"))
    words = f"{Path(data[0]).stem.removesuffix('_train') if data else 'run'}-{given.get('finetuning_type', 'lora')}"
    return re.sub(r"[^\w.-]+", "-", words)[:60] or "run"


def _device_text(words: Words, device: Device) -> str:
    from llmforge.webui.amounts import size

    return f"{device.name}: {device.label}, {words('train.free', free=size(device.free), total=size(device.total))}"


def _best(found: list[Device]) -> Device:
    """The card with the most free memory, the processor where there is none."""
    cards = [device for device in found if device.name != "cpu"]
    return max(cards, key=lambda device: device.free) if cards else found[0]
