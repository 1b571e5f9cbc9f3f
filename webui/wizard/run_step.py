"""The last step of the wizard: the run's name and its device, and starting it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from llmforge.webui import form, launch
from llmforge.webui.amounts import size
from llmforge.webui.devices import Device, devices
from llmforge.webui.markup import tag
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.refusal import Refusal
from llmforge.webui.wizard.recipe_form import QUIET, RecipeForm, as_list, marked, to_step
from llmforge.webui.words import Words, mark, words_of

STEP = 5
# That the run is queued is seen for a moment, then the page goes on to it.
GO = """
watch('value', () => setTimeout(() => {
  const link = element.querySelector('a[data-go]');
  if (link) location.href = link.href;
}, 700));
"""


class RunStep:
    """Name, devices and Start, which is free only for a recipe that was checked as it stands."""

    def __init__(self, sheet: RecipeForm):
        self.sheet = sheet
        with gr.Row():
            self.name = gr.Textbox(
                label=mark("train.field.name"), info=mark("train.info.name"), max_lines=1, elem_id="field-name"
            )
            self.devices = gr.CheckboxGroup(
                [], label=mark("train.field.devices"), info=mark("train.info.devices"), elem_id="field-devices"
            )
        self.told = gr.HTML(js_on_load=GO, elem_id="train-start-told")
        with gr.Row():
            self.back = gr.Button(mark("train.back"))
            self.start = gr.Button(mark("train.start"), variant="primary", interactive=False, elem_id="train-start")

    def wire(self, wizard: gr.Walkthrough, ask: gr.Button, checked: gr.State) -> None:
        """`ask` of the step before leads here; `checked` is the text that may start."""
        given = self.sheet.given
        ask.click(self._open, [given, self.name], [wizard, self.name], **QUIET)
        self.start.click(self._start, [self.name, self.devices, given, checked], [self.told, self.name], **QUIET)

    def _open(self, given: form.Given, name: str) -> list[Any]:
        return [to_step(STEP), name or launch.free_name(self.sheet.board, proposed_name(given))]

    def _start(self, name: str, chosen: list[str], given: form.Given, checked: str, request: gr.Request) -> list[Any]:
        words, board = words_of(request), self.sheet.board
        fine = marked(words, "name", None)
        if not checked or form.to_yaml(given) != checked:
            return [tag("p", words("train.check_first"), class_="bad", role="alert"), fine]
        try:
            cards = [device for device in chosen if device != "cpu"]
            recipe = checked if cards or len(devices()) == 1 else launch.with_key(checked, "device", "cpu")
            run = launch.start_run(board, name.strip(), recipe, cards or ["cpu"])
        except Refusal as refusal:
            return ["", marked(words, "name", refusal.said(words))]
        except Exception as error:
            return [show_trouble(words, trouble_of(words, words("train.start_failed"), error)), fine]
        link = tag("a", words("train.watch"), href=f"runs?run={quote(board.shown(run.path))}", data_go=True)
        return [tag("p", words("train.started"), " ", link, class_="note", role="status"), fine]


def device_boxes(words: Words) -> gr.CheckboxGroup:
    """This machine's devices with their free memory; the best one is ticked."""
    found = devices()
    return gr.CheckboxGroup([(_device_text(words, device), device.name) for device in found], value=[_best(found).name])


def proposed_name(given: form.Given) -> str:
    """A name out of data and method: report_classify_zh-lora."""
    data = as_list(given.get("dataset"))
    first = Path(data[0]).stem.removesuffix("_train") if data else "run"
    return re.sub(r"[^\w.-]+", "-", f"{first}-{given.get('finetuning_type', 'lora')}")[:60]


def _device_text(words: Words, device: Device) -> str:
    return f"{device.name}: {device.label}, {words('train.free', free=size(device.free), total=size(device.total))}"


def _best(found: list[Device]) -> Device:
    """The card with the most free memory, the processor where there is none."""
    cards = [device for device in found if device.name != "cpu"]
    return max(cards, key=lambda device: device.free) if cards else found[0]
