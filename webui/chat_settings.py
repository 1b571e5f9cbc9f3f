"""How answers are drawn on the page Chat: the fields, and what they say."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from llmforge.webui.chat_client import Asked
from llmforge.webui.refusal import Refusal
from llmforge.webui.words import mark

DECODERS = ("sample", "greedy", "contrastive")
SETTINGS = ("decoder", "temperature", "top_p", "top_k", "penalty_alpha", "repetition_penalty", "max_tokens", "seed")


def draw_settings() -> dict[str, Any]:
    """The fields, named as in `SETTINGS`, then schema and system."""
    with gr.Accordion(mark("chat.settings"), open=False, elem_id="chat-settings"):
        system = gr.Textbox(label=mark("chat.system"), lines=2, elem_id="chat-system")
        with gr.Row():
            decoder = gr.Radio(list(DECODERS), value="sample", label=mark("chat.decoder"), elem_id="chat-decoder")
            seed = gr.Number(42, label=mark("chat.seed"), precision=0, elem_id="chat-seed")
            max_tokens = gr.Slider(1, 4096, 512, step=1, label=mark("chat.max_tokens"), elem_id="chat-max-tokens")
        with gr.Row():
            temperature = gr.Slider(0, 2, 0.7, step=0.05, label=mark("chat.temperature"), elem_id="chat-temperature")
            top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label=mark("chat.top_p"), elem_id="chat-top-p")
            penalty = gr.Slider(1, 2, 1, step=0.05, label=mark("chat.repetition_penalty"), elem_id="chat-penalty")
        with gr.Row(visible=False) as contrast:
            top_k = gr.Slider(2, 32, 4, step=1, label=mark("chat.top_k"), elem_id="chat-top-k")
            alpha = gr.Slider(0, 1, 0.6, step=0.05, label=mark("chat.penalty_alpha"), elem_id="chat-alpha")
        schema = gr.Code(
            language="json", label=mark("chat.schema"), elem_id="chat-schema", lines=3, max_lines=12, buttons=[]
        )

    def method(name: str) -> list[Any]:
        draws = name == "sample"
        return [gr.Row(visible=name == "contrastive"), gr.Slider(interactive=draws), gr.Slider(interactive=draws)]

    decoder.change(method, decoder, [contrast, temperature, top_p], show_progress="hidden", api_visibility="private")
    return {
        "decoder": decoder, "temperature": temperature, "top_p": top_p, "top_k": top_k, "penalty_alpha": alpha,
        "repetition_penalty": penalty, "max_tokens": max_tokens, "seed": seed, "schema": schema, "system": system,
    }  # fmt: skip


def read_settings(given: Any) -> tuple[Asked, str]:
    """(how replies are drawn, system text) out of the values of `draw_settings`.

    Raises:
        Refusal: the schema is no JSON object.
    """
    values = dict(zip((*SETTINGS, "schema", "system"), given, strict=True))
    schema = None
    if (values["schema"] or "").strip():
        try:
            schema = json.loads(values["schema"])
        except json.JSONDecodeError as error:
            where = {"line": error.lineno, "column": error.colno}
            raise Refusal("chat.bad_schema", "schema", why=error.msg, **where) from None
        if not isinstance(schema, dict):
            raise Refusal("chat.bad_schema_kind", "schema")
    whole = {name: int(values[name]) for name in ("top_k", "max_tokens", "seed") if values[name] is not None}
    shares = {name: values[name] for name in ("temperature", "top_p", "penalty_alpha", "repetition_penalty")}
    if shares["repetition_penalty"] == 1:
        shares["repetition_penalty"] = None  # a server that does not know the field need not be told that it is off
    return Asked(values["decoder"], **shares, **whole, schema=schema), (values["system"] or "").strip()
