"""The page Chat: one to three models answer the same question, side by side; votes, tokens, scores, copies."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import psutil

from llmforge.errors import ForgeError, RecipeError
from llmforge.webui import chat_client, servers
from llmforge.webui.amounts import size
from llmforge.webui.board import Board
from llmforge.webui.chat_client import Asked, Target
from llmforge.webui.data_table import known_models
from llmforge.webui.markup import Safe, tag
from llmforge.webui.pages.data import PICK
from llmforge.webui.poll import on_load, on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.talk import MOST_COLUMNS, VOTES, Talk, show_talk
from llmforge.webui.words import Words, mark, words_of

EVERY_S = 0.1  # how often what was written since is shown, and Stop is looked at
DECODERS = ("sample", "greedy", "contrastive")
SETTINGS = ("decoder", "temperature", "top_p", "top_k", "penalty_alpha", "repetition_penalty", "max_tokens", "seed")
ESCAPE = """
if (window.forgeChatKeys) document.removeEventListener("keydown", window.forgeChatKeys);
window.forgeChatKeys = (event) => {
  const stop = document.getElementById("chat-stop");
  if (event.key === "Escape" && stop && !stop.disabled) stop.click();
};
document.addEventListener("keydown", window.forgeChatKeys);
"""
_stops: dict[str, asyncio.Event] = {}  # session -> told to stop


def build(board: Board) -> None:
    """What stands on the page."""
    talk = gr.State(Talk())
    others = gr.State([])  # (url, model, key_env) of servers that were connected by address
    gr.HTML(tag("p", Safe(str(mark("chat.intro"))), class_="calm"))
    with gr.Row():
        what = gr.Dropdown(
            [], label=mark("chat.start_what"), info=mark("chat.start_info"), allow_custom_value=True,
            elem_id="chat-what", scale=4,
        )  # fmt: skip
        start = gr.Button(mark("chat.start"), variant="primary", elem_id="chat-start", scale=0, min_width=120)
    weight = gr.HTML(elem_id="chat-weight")
    with gr.Accordion(mark("chat.other"), open=False, elem_id="chat-other"), gr.Row():
        url = gr.Textbox(label=mark("chat.url"), placeholder=mark("chat.url_hint"), elem_id="chat-url", scale=3)
        key_env = gr.Textbox(label=mark("chat.key_env"), elem_id="chat-key-env", scale=2)
        connect = gr.Button(mark("chat.connect"), elem_id="chat-connect", scale=0, min_width=110)
    status = gr.HTML(js_on_load=PICK, elem_id="chat-status")
    trouble = gr.HTML(elem_id="chat-trouble")
    with gr.Row():
        number = gr.Radio([1, 2, 3], value=1, label=mark("chat.columns"), elem_id="chat-columns", scale=1)
        chosen = [
            gr.Dropdown([], label=mark(f"chat.model_{i}"), visible=i == 0, elem_id=f"chat-model-{i}", scale=2)
            for i in range(MOST_COLUMNS)
        ]
        reward = gr.Dropdown([], label=mark("chat.reward"), visible=False, elem_id="chat-reward", scale=2)
    shown = gr.HTML(js_on_load=ESCAPE, elem_id="chat-talk")
    with gr.Row(visible=False, elem_id="chat-votes", elem_classes="actions") as voting:
        votes = {
            choice: gr.Button(mark(f"chat.vote_{choice.lower()}"), size="sm", elem_id=f"chat-vote-{choice.lower()}")
            for choice in ("A", "B", "tie", "bad")
        }
    prompt = gr.Textbox(
        label=mark("chat.prompt"), placeholder=mark("chat.prompt_hint"), lines=1, max_lines=8, elem_id="chat-prompt"
    )
    with gr.Row(elem_classes="actions"):
        send = gr.Button(mark("chat.send"), variant="primary", elem_id="chat-send", size="sm")
        stop = gr.Button(mark("chat.stop"), elem_id="chat-stop", size="sm", interactive=False)
        retry = gr.Button(mark("chat.retry"), elem_id="chat-retry", size="sm")
        edit = gr.Button(mark("chat.edit"), elem_id="chat-edit", size="sm")
        clear = gr.Button(mark("chat.clear"), elem_id="chat-clear", size="sm")
    blind = gr.Checkbox(False, label=mark("chat.blind"), elem_id="chat-blind")
    drawn = _settings()
    with gr.Accordion(mark("chat.raw"), open=False, elem_id="chat-raw"):
        raw_button = gr.Button(mark("chat.raw_show"), size="sm", elem_id="chat-raw-show")
        raw = gr.HTML(elem_id="chat-raw-text")
    with gr.Accordion(mark("chat.copy"), open=False, elem_id="chat-copy"):
        curl = gr.Code(language="shell", label=mark("chat.copy_curl"), interactive=False)
        python = gr.Code(language="python", label=mark("chat.copy_python"), interactive=False)
    recipe = RecipeView("chat")
    timer = gr.Timer(2)

    def opened(request: gr.Request) -> list[Any]:
        words = words_of(request)
        wanted = request.query_params.get("run", "")
        found = servers.startable(board, known_models(board))
        decoders = [(words(f"chat.decoder_{name}"), name) for name in DECODERS]
        return [
            gr.Dropdown(choices=found, value=wanted or (found[0] if found else None)),
            gr.Radio(choices=decoders, value="sample"),
        ]

    def standing(request: gr.Request, others: list[Any], count: int, *now: str | None) -> list[Any]:
        """The state of all servers, and what a column may choose."""
        words = words_of(request)
        answering, judging = _choices(board, words, others)
        values = [value for _, value in answering]
        picked = _picked(values, list(now[:MOST_COLUMNS]), count)
        drops = [gr.update(choices=answering, value=value, visible=i < count) for i, value in enumerate(picked)]
        none = [(words("chat.none"), ""), *judging]
        judge = gr.update(choices=none, value=now[-1] or "", visible=bool(judging))
        return [_status(board, words, bool(others)), *drops, judge]

    def started(name: str | None, count: int, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            server = servers.start_server(board, name or "")
        except ForgeError as error:
            return [show_trouble(words, trouble_of(words, words("chat.failed_start"), error)), *[gr.skip()] * 4]
        pair = 2 if (board.root / server.target / "adapter_config.json").is_file() and count == 1 else count
        text = f"model_name_or_path: {name}\n" if len(server.words) > 1 and "=" in server.words[1] else ""
        command = shlex.join(["forge-cli", *server.words])
        return ["", _status(board, words), pair, *RecipeView.show(text, command)]

    def weighed(name: str | None, request: gr.Request) -> Any:
        words = words_of(request)
        try:
            needed = servers.weight_bytes(board, (name or "").strip()) if name else 0
        except ForgeError:
            return ""  # loading says what is wrong
        free = psutil.virtual_memory().available
        kind = "warn" if needed > free else "calm"
        return tag("p", words("chat.needs", need=size(needed), free=size(free)), class_=kind) if needed else ""

    def picked_off(request: gr.Request, event: gr.EventData) -> Any:
        for server in servers.servers(board):
            if server.folder.name == str(event.value):
                servers.stop_server(server)
        return _status(board, words_of(request))

    async def connected(address: str, key: str, known: list[Any], request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            names = await chat_client.models(address.strip(), key.strip())
        except Exception as error:
            return [known, show_trouble(words, trouble_of(words, words("chat.failed_connect"), error))]
        new = [(address.strip().rstrip("/"), name, key.strip()) for name in names]
        told = tag("p", words("chat.ready", name=", ".join(names)), class_="good", role="status")
        return [[*(one for one in known if one not in new), *new], told]

    async def asked(
        text: str, at: Talk, others: list[Any], count: int, blind: bool, judge: str, request: gr.Request, *rest: Any
    ) -> AsyncIterator[list[Any]]:
        words, models, given = words_of(request), rest[:MOST_COLUMNS], rest[MOST_COLUMNS:]
        try:
            drawn, system = read_settings(words, given)
            if not text.strip():
                raise RecipeError(words("chat.no_prompt"))
            names = {value: name for name, value in _choices(board, words, others)[0]}
            picks = [(_target(value), names.get(value, value)) for value in models[:count] if value]
            if not picks:
                raise RecipeError(words("chat.no_model"))
            at.begin(picks, text, system, blind and len(picks) == 2)
        except Exception as error:
            wrong = show_trouble(words, trouble_of(words, words("chat.failed_send"), error))
            yield [at, wrong, gr.skip(), text, gr.skip(), gr.Button(interactive=False), *[gr.skip()] * 2]
            return
        target = at.columns[0].target
        body = drawn.body(target.model, at.columns[0].messages)
        at.settings = {name: value for name, value in body.items() if name not in ("model", "messages")}
        copies = [chat_client.as_curl(target, body), chat_client.as_python(target, body)]
        yield [at, "", show_talk(words, at), "", gr.Row(visible=False), gr.Button(interactive=True), *copies]
        async for _ in run(at, drawn, request.session_hash or ""):
            yield [gr.skip(), gr.skip(), show_talk(words, at), *[gr.skip()] * 5]
        if judge:
            await _judge(at, _target(judge))
        votable = len(at.columns) == 2 and all(column.reply and column.reply.text for column in at.columns)
        last = [gr.Row(visible=votable), gr.Button(interactive=False), gr.skip(), gr.skip()]
        yield [at, gr.skip(), show_talk(words, at), gr.skip(), *last]

    async def again(
        at: Talk, others: list[Any], count: int, blind: bool, judge: str, request: gr.Request, *rest: Any
    ) -> AsyncIterator[list[Any]]:
        async for values in asked(at.drop_last(), at, others, count, blind, judge, request, *rest):
            yield values

    def stopped(request: gr.Request) -> None:
        if event := _stops.get(request.session_hash or ""):
            event.set()

    def edited(at: Talk, request: gr.Request) -> list[Any]:
        text = at.drop_last()
        return [at, text, show_talk(words_of(request), at), gr.Row(visible=False)]

    def cleared(request: gr.Request) -> list[Any]:
        return [Talk(), show_talk(words_of(request), Talk()), gr.Row(visible=False), ""]

    def voter(choice: str) -> Any:
        def voted(at: Talk, request: gr.Request) -> list[Any]:
            words = words_of(request)
            at.vote(board, choice)
            told = tag("p", words("chat.voted", path=f"work/{VOTES}"), class_="good", role="status")
            return [at, told, show_talk(words, at), gr.Row(visible=False)]

        return voted

    async def tokens(at: Talk, request: gr.Request) -> Safe:
        words = words_of(request)
        try:
            if not at.columns:
                raise RecipeError(words("chat.no_prompt"))
            column = at.columns[0]
            messages = column.messages[:-1] if column.messages[-1]["role"] == "assistant" else column.messages
            ids, texts = await chat_client.tokens(column.target, messages)
        except Exception as error:
            return show_trouble(words, trouble_of(words, words("chat.failed_raw"), error))
        shown = [tag("span", text, title=id, class_="token") for id, text in zip(ids, texts, strict=False)]
        return tag("div", tag("p", words("chat.raw_count", n=len(ids)), class_="calm"), tag("pre", *shown))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    on_load(opened, [what, drawn["decoder"]])
    on_tick(timer, standing, [others, number, *chosen, reward], [status, *chosen, reward])
    what.change(weighed, what, weight, **quiet)
    start.click(started, [what, number], [trouble, status, number, *recipe.outputs], **quiet)
    status.select(picked_off, None, status, **quiet)
    connect.click(connected, [url, key_env, others], [others, trouble], **quiet)
    number.change(lambda count: [gr.Dropdown(visible=i < count) for i in range(MOST_COLUMNS)], number, chosen, **quiet)
    inputs = [talk, others, number, blind, reward, *chosen, *drawn.values()]
    outputs = [talk, trouble, shown, prompt, voting, stop, curl, python]
    gr.on([send.click, prompt.submit], asked, [prompt, *inputs], outputs, concurrency_limit=None, **quiet)
    retry.click(again, inputs, outputs, concurrency_limit=None, **quiet)
    stop.click(stopped, None, None, queue=False, **quiet)
    edit.click(edited, talk, [talk, prompt, shown, voting], **quiet)
    clear.click(cleared, None, [talk, shown, voting, trouble], **quiet)
    for choice, button in votes.items():
        button.click(voter(choice), talk, [talk, trouble, shown, voting], **quiet)
    raw_button.click(tokens, talk, raw, **quiet)


def _settings() -> dict[str, Any]:
    """The sliders; named as in `SETTINGS`, then schema and system."""
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
        schema = gr.Code(language="json", label=mark("chat.schema"), elem_id="chat-schema", lines=3, max_lines=12)

    def method(name: str) -> list[Any]:
        draws = name == "sample"
        return [gr.Row(visible=name == "contrastive"), gr.Slider(interactive=draws), gr.Slider(interactive=draws)]

    decoder.change(method, decoder, [contrast, temperature, top_p], show_progress="hidden", api_visibility="private")
    return {
        "decoder": decoder, "temperature": temperature, "top_p": top_p, "top_k": top_k, "penalty_alpha": alpha,
        "repetition_penalty": penalty, "max_tokens": max_tokens, "seed": seed, "schema": schema, "system": system,
    }  # fmt: skip


def read_settings(words: Words, given: Any) -> tuple[Asked, str]:
    """(how replies are drawn, system text) out of the values of `_settings`.

    Raises:
        RecipeError: the schema is no JSON object.
    """
    values = dict(zip((*SETTINGS, "schema", "system"), given, strict=True))
    schema = None
    if (values["schema"] or "").strip():
        try:
            schema = json.loads(values["schema"])
        except json.JSONDecodeError as error:
            raise RecipeError(words("chat.bad_schema", line=error.lineno, column=error.colno, why=error.msg)) from None
        if not isinstance(schema, dict):
            raise RecipeError(words("chat.bad_schema_kind"))
    whole = {name: int(values[name]) for name in ("top_k", "max_tokens", "seed") if values[name] is not None}
    shares = {name: values[name] for name in ("temperature", "top_p", "penalty_alpha", "repetition_penalty")}
    if shares["repetition_penalty"] == 1:
        shares["repetition_penalty"] = None  # a server that does not know the field need not be told that it is off
    return Asked(values["decoder"], **shares, **whole, schema=schema), (values["system"] or "").strip()


async def run(at: Talk, drawn: Asked, session: str) -> AsyncIterator[None]:
    """Stream all columns at once until they are over or the reader stops them; yields when there is something new."""
    stop = _stops[session] = asyncio.Event()
    tasks = [
        asyncio.create_task(
            chat_client.fill(column.reply, column.target, drawn.body(column.target.model, column.messages))
        )
        for column in at.columns
        if column.reply
    ]
    try:
        while not all(task.done() for task in tasks) and not stop.is_set():
            yield None
            await asyncio.wait(tasks, timeout=EVERY_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for column in at.columns:
            column.close()
        if _stops.get(session) is stop:
            del _stops[session]
    yield None


async def _judge(at: Talk, target: Target) -> None:
    """The reward of every answer; a reward model that fails says so at the answer."""
    for column in at.columns:
        if column.reply and column.reply.text:
            try:
                column.reply.score = await chat_client.score(target, column.messages)
            except ForgeError as error:
                column.reply.error = str(error)


def _choices(board: Board, words: Words, others: list[Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(label, value) of everything that answers, and of everything that scores."""
    answering, judging = [], []
    for server in servers.servers(board):
        for name in server.models() if server.is_alive else []:
            value = json.dumps([server.url, name, ""])
            if server.scores:
                judging.append((server.target, value))
            elif (board.root / server.target / "adapter_config.json").is_file():
                kind = "chat.base" if servers.is_base(name, server) else "chat.tuned"
                answering.append((words(kind, name=name), value))
            else:
                answering.append((name, value))
    answering += [(f"{name} ({url})", json.dumps([url, name, key])) for url, name, key in others]
    return answering, judging


def _picked(values: list[str], now: list[str | None], count: int) -> list[str | None]:
    """What each column chooses: what it chose before while that is there, else the next that no other column has."""
    kept = [value if value in values else None for value in now]
    for i in range(count):
        if kept[i] is None:
            kept[i] = next((value for value in values if value not in kept), values[0] if values else None)
    return kept


def _target(value: str) -> Target:
    url, model, key = json.loads(value)
    return Target(url, model, key)


def _status(board: Board, words: Words, connected: bool = False) -> Safe:
    """What is loaded or loading, and a warning while the device trains; `connected`: another server answers."""
    lines = [
        tag("p", words("chat.training", name=run.path.name), class_="warn", role="status")
        for run in servers.training(board)
    ]
    found = servers.servers(board)
    for server in found:
        name = Path(server.target).name
        unload = tag(
            "button", words("chat.unload", name=name), type="button", class_="plain", data_pick=server.folder.name
        )
        if not server.is_alive:
            told = tag("p", words("chat.ended", name=name), " ", unload, class_="bad")
            lines += [told, tag("details", tag("summary", words("chat.log")), tag("pre", server.last_words()))]
        elif server.models():
            lines.append(tag("p", words("chat.ready", name=name), " ", unload, class_="good"))
        else:
            seconds = round(time.time() - server.started_at)
            lines.append(tag("p", words("chat.loading", name=name, seconds=seconds), " ", unload, class_="calm"))
    if not found and not connected:
        lines.append(tag("p", words("chat.no_server"), class_="calm"))
    return tag("div", *lines)
