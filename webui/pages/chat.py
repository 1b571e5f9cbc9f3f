"""The page Chat: one to three models answer the same question, side by side; votes, tokens, scores, copies."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import psutil

from llmforge.errors import ForgeError
from llmforge.webui import chat_client, servers
from llmforge.webui.amounts import size
from llmforge.webui.answering import answer, judge, stop
from llmforge.webui.board import Board
from llmforge.webui.chat_models import choices, picked, show_status, target_of
from llmforge.webui.chat_settings import DECODERS, draw_settings, read_settings
from llmforge.webui.data_table import known_models
from llmforge.webui.markup import PICK, Safe, tag
from llmforge.webui.poll import on_load, on_tick
from llmforge.webui.problem import show_trouble, trouble_of
from llmforge.webui.recipe_view import RecipeView
from llmforge.webui.refusal import Refusal
from llmforge.webui.talk import MOST_COLUMNS, VOTES, Talk, show_talk
from llmforge.webui.words import Words, mark, words_of

IDLE_MINUTES = 30
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Esc stops; a run whose link on the page Runs was clicked (board.js notes it) is loaded as soon as it is chosen.
SCRIPT = """
if (window.forgeChatKeys) document.removeEventListener("keydown", window.forgeChatKeys);
window.forgeChatKeys = (event) => {
  const stop = document.getElementById("chat-stop");
  if (event.key === "Escape" && stop && !stop.disabled) stop.click();
};
document.addEventListener("keydown", window.forgeChatKeys);
const wanted = sessionStorage.getItem("forge_load"), until = Date.now() + 60000;
sessionStorage.removeItem("forge_load");
const load = wanted && setInterval(() => {
  const field = document.querySelector("#chat-what input"), button = document.getElementById("chat-start");
  const chosen = field && button && field.value === wanted;
  if (chosen) button.click();
  if (chosen || Date.now() > until) clearInterval(load);
}, 200);
"""


def build(board: Board) -> None:
    """What stands on the page."""
    _Page(board).build()


class _Page:
    """The components by name; `talk` is what was said, `others` are models of servers connected by their address."""

    def __init__(self, board: Board):
        self.board = board

    def build(self) -> None:
        self.talk = gr.State(Talk())
        self.others = gr.State([])  # (url, model, key_env)
        gr.HTML(tag("p", Safe(str(mark("chat.intro"))), class_="calm"))
        self._models()
        self._conversation()
        self.drawn = draw_settings()
        with gr.Accordion(mark("chat.raw"), open=False, elem_id="chat-raw"):
            self.raw_button = gr.Button(mark("chat.raw_show"), size="sm", elem_id="chat-raw-show")
            self.raw = gr.HTML(elem_id="chat-raw-text")
        with gr.Accordion(mark("chat.copy"), open=False, elem_id="chat-copy"):
            shown: dict[str, Any] = {"interactive": False, "buttons": ["copy"]}
            self.curl = gr.Code(language="shell", label=mark("chat.copy_curl"), **shown)
            self.python = gr.Code(language="python", label=mark("chat.copy_python"), **shown)
        self.recipe = RecipeView("chat")
        self._wire()

    # What stands on the page

    def _models(self) -> None:
        with gr.Row():
            self.what = gr.Dropdown(
                [], label=mark("chat.start_what"), info=mark("chat.start_info"), allow_custom_value=True,
                elem_id="chat-what", scale=4,
            )  # fmt: skip
            self.idle = gr.Number(
                IDLE_MINUTES, label=mark("chat.idle_minutes"), info=mark("chat.idle_info"), minimum=0, precision=0,
                elem_id="chat-idle", scale=2,
            )  # fmt: skip
            self.start = gr.Button(mark("chat.start"), variant="primary", elem_id="chat-start", scale=0, min_width=120)
        self.weight = gr.HTML(elem_id="chat-weight")
        with gr.Accordion(mark("chat.other"), open=False, elem_id="chat-other"), gr.Row():
            self.url = gr.Textbox(
                label=mark("chat.url"), placeholder=mark("chat.url_hint"), elem_id="chat-url", scale=3
            )
            self.key_env = gr.Textbox(label=mark("chat.key_env"), elem_id="chat-key-env", scale=2)
            self.connect = gr.Button(mark("chat.connect"), elem_id="chat-connect", scale=0, min_width=110)
        self.status = gr.HTML(js_on_load=PICK, elem_id="chat-status")
        self.trouble = gr.HTML(elem_id="chat-trouble")
        with gr.Row():
            self.number = gr.Radio(
                [1, 2, 3], value=1, label=mark("chat.columns"), elem_id="chat-columns", scale=1, min_width=240
            )
            self.chosen = [
                gr.Dropdown([], label=mark(f"chat.model_{i}"), visible=i == 0, elem_id=f"chat-model-{i}", scale=2)
                for i in range(MOST_COLUMNS)
            ]
            self.reward = gr.Dropdown([], label=mark("chat.reward"), visible=False, elem_id="chat-reward", scale=2)

    def _conversation(self) -> None:
        self.shown = gr.HTML(js_on_load=SCRIPT, elem_id="chat-talk")
        with gr.Row(visible=False, elem_id="chat-votes", elem_classes="actions") as self.voting:
            self.votes = {
                choice: gr.Button(mark(f"chat.vote_{choice.lower()}"), size="sm", elem_id=f"chat-vote-{choice.lower()}")
                for choice in ("A", "B", "tie", "bad")
            }
        self.prompt = gr.Textbox(
            label=mark("chat.prompt"), placeholder=mark("chat.prompt_hint"), lines=1, max_lines=8, elem_id="chat-prompt"
        )
        with gr.Row(elem_classes="actions"):
            self.send = gr.Button(mark("chat.send"), variant="primary", elem_id="chat-send", size="sm")
            self.stop = gr.Button(mark("chat.stop"), elem_id="chat-stop", size="sm", interactive=False)
            self.retry = gr.Button(mark("chat.retry"), elem_id="chat-retry", size="sm")
            self.edit = gr.Button(mark("chat.edit"), elem_id="chat-edit", size="sm")
            self.clear = gr.Button(mark("chat.clear"), elem_id="chat-clear", size="sm")
        self.blind = gr.Checkbox(False, label=mark("chat.blind"), elem_id="chat-blind")

    def _wire(self) -> None:
        on_load(self._opened, [self.what, self.drawn["decoder"]])
        standing = [self.status, *self.chosen, self.reward]
        seen = [self.others, self.number, *self.chosen, self.reward]
        on_load(self._standing, standing, seen)
        on_tick(gr.Timer(2), self._standing, seen, standing)
        self.what.change(self._weighed, self.what, self.weight, **QUIET)
        started = [self.trouble, self.status, self.number, *self.recipe.outputs]
        self.start.click(self._started, [self.what, self.number, self.idle], started, **QUIET)
        self.status.select(self._put_away, None, self.status, **QUIET)
        self.connect.click(self._connected, [self.url, self.key_env, self.others], [self.others, self.trouble], **QUIET)
        self.number.change(_columns, self.number, self.chosen, **QUIET)
        inputs = [self.talk, self.others, self.number, self.blind, *self.chosen, *self.drawn.values()]
        begun = [self.talk, self.trouble, self.shown, self.prompt, self.curl, self.python, *self._buttons]
        asked = gr.on([self.send.click, self.prompt.submit], self._asked, [self.prompt, *inputs], begun, **QUIET)
        again = self.retry.click(self._again, inputs, begun, **QUIET)
        for event in (asked, again):
            # Answers grow in an event of one output: gradio builds every output anew for each piece, skipped ones too.
            then = {**QUIET, "trigger_mode": "multiple"}
            grown = event.then(_growing, [self.talk, self.reward], self.shown, concurrency_limit=None, **then)
            grown.then(_offered, self.talk, self._buttons, **then)
        self.stop.click(_stopped, None, None, queue=False, **QUIET)
        self.edit.click(_edited, self.talk, [self.talk, self.prompt, self.shown, self.voting], **QUIET)
        self.clear.click(_cleared, None, [self.talk, self.shown, self.voting, self.trouble], **QUIET)
        for choice, button in self.votes.items():
            voted = [self.talk, self.trouble, self.shown, self.voting]
            button.click(self._voter(choice), self.talk, voted, **QUIET)
        self.raw_button.click(_tokens, self.talk, self.raw, **QUIET)

    @property
    def _buttons(self) -> list[Any]:
        """What depends on whether an answer is being written."""
        return [self.voting, self.stop, self.send, self.retry, self.edit, self.clear]

    # Models

    def _opened(self, request: gr.Request) -> list[Any]:
        words = words_of(request)
        wanted = request.query_params.get("run", "")
        found = servers.startable(self.board, known_models(self.board))
        decoders = [(words(f"chat.decoder_{name}"), name) for name in DECODERS]
        return [
            gr.Dropdown(choices=found, value=wanted or (found[0] if found else None)),
            gr.Radio(choices=decoders, value="sample"),
        ]

    def _standing(self, request: gr.Request, others: list[Any], count: int, *now: str | None) -> list[Any]:
        """The state of all servers, and what a column may choose."""
        words = words_of(request)
        answering, judging = choices(self.board, words, others)
        kept = picked([value for _, value in answering], list(now[:MOST_COLUMNS]), count)
        drops = [gr.update(choices=answering, value=value, visible=i < count) for i, value in enumerate(kept)]
        none = [(words("chat.none"), ""), *judging]
        reward = gr.update(choices=none, value=now[-1] or "", visible=bool(judging))
        return [show_status(self.board, words, bool(others)), *drops, reward]

    def _started(self, name: str | None, count: int, idle: float | None, request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            server = servers.start_server(self.board, name or "", idle or 0)
        except ForgeError as error:
            return [show_trouble(words, trouble_of(words, words("chat.failed_start"), error)), *[gr.skip()] * 4]
        has_base = (self.board.root / server.target / "adapter_config.json").is_file()
        text = f"model_name_or_path: {name}\n" if len(server.words) > 1 and "=" in server.words[1] else ""
        command = shlex.join(["forge-cli", *server.words])
        pair = 2 if has_base and count == 1 else count
        return ["", show_status(self.board, words), pair, *RecipeView.show(text, command)]

    def _weighed(self, name: str | None, request: gr.Request) -> Any:
        words = words_of(request)
        try:
            needed = servers.weight_bytes(self.board, (name or "").strip()) if name else 0
        except ForgeError:
            return ""  # loading says what is wrong
        free = psutil.virtual_memory().available
        kind = "warn" if needed > free else "calm"
        return tag("p", words("chat.needs", need=size(needed), free=size(free)), class_=kind) if needed else ""

    def _put_away(self, request: gr.Request, event: gr.EventData) -> Any:
        for server in servers.servers(self.board):
            if server.folder.name == str(event.value):
                servers.stop_server(server)
        return show_status(self.board, words_of(request))

    async def _connected(self, address: str, key: str, known: list[Any], request: gr.Request) -> list[Any]:
        words = words_of(request)
        try:
            names = await chat_client.models(address.strip(), key.strip())
        except Exception as error:
            return [known, show_trouble(words, trouble_of(words, words("chat.failed_connect"), error))]
        new = [(address.strip().rstrip("/"), name, key.strip()) for name in names]
        told = tag("p", words("chat.ready", name=", ".join(names)), class_="good", role="status")
        return [[*(one for one in known if one not in new), *new], told]

    # The conversation

    def _asked(
        self, text: str, at: Talk, others: list[Any], count: int, blind: bool, request: gr.Request, *rest: Any
    ) -> list[Any]:
        """The question stands, and what answers it; `_growing` fills the answers."""
        words, models, given = words_of(request), rest[:MOST_COLUMNS], rest[MOST_COLUMNS:]
        if at.is_written:  # Enter, while Send waits
            return [gr.skip()] * (6 + len(self._buttons))
        try:
            drawn, system = read_settings(given)
            if not text.strip():
                raise Refusal("chat.no_prompt", "prompt")
            names = {value: name for name, value in choices(self.board, words, others)[0]}
            picks = [(target_of(value), names.get(value, value)) for value in models[:count] if value]
            if not picks:
                raise Refusal("chat.no_model")
            for target, _ in picks:
                target.headers()
            at.begin(picks, text, system, blind and len(picks) == 2, drawn)
        except Exception as error:
            wrong = show_trouble(words, trouble_of(words, words("chat.failed_send"), error))
            return [at, wrong, gr.skip(), text, *[gr.skip()] * (2 + len(self._buttons))]
        first = at.columns[0]
        body = drawn.body(first.target.model, first.messages)
        copies = [chat_client.as_curl(first.target, body), chat_client.as_python(first.target, body)]
        return [at, "", show_talk(words, at), "", *copies, *_offered(at)]

    def _again(
        self, at: Talk, others: list[Any], count: int, blind: bool, request: gr.Request, *rest: Any
    ) -> list[Any]:
        text = "" if at.is_written else at.drop_last()
        return self._asked(text, at, others, count, blind, request, *rest)

    def _voter(self, choice: str) -> Any:
        def voted(at: Talk, request: gr.Request) -> list[Any]:
            words = words_of(request)
            at.vote(self.board, choice)
            told = tag("p", words("chat.voted", path=f"work/{VOTES}"), class_="good", role="status")
            return [at, told, show_talk(words, at), gr.Row(visible=False)]

        return voted


def _columns(count: int) -> list[Any]:
    return [gr.Dropdown(visible=i < count) for i in range(MOST_COLUMNS)]


async def _growing(at: Talk, reward: str, request: gr.Request) -> AsyncIterator[Safe]:
    """The answers as they are written, then their scores."""
    words = words_of(request)
    async for _ in answer(at, request.session_hash or ""):
        yield show_talk(words, at)
    if reward:
        yield show_talk(words, at)
        await judge(at, target_of(reward))
    yield show_talk(words, at)


def _offered(at: Talk) -> list[Any]:
    """What can be pressed now: Stop while an answer is written, else everything else."""
    others = [gr.Button(interactive=not at.is_written) for _ in range(4)]
    return [gr.Row(visible=at.is_votable), gr.Button(interactive=at.is_written), *others]


async def _stopped(request: gr.Request) -> None:
    stop(request.session_hash or "")


def _edited(at: Talk, request: gr.Request) -> list[Any]:
    text = at.drop_last()
    return [at, text, show_talk(words_of(request), at), gr.Row(visible=False)]


def _cleared(request: gr.Request) -> list[Any]:
    return [Talk(), show_talk(words_of(request), Talk()), gr.Row(visible=False), ""]


async def _tokens(at: Talk, request: gr.Request) -> Safe:
    """What each model reads, with the names the columns show."""
    words = words_of(request)
    if not at.columns:
        return show_trouble(words, trouble_of(words, words("chat.failed_raw"), Refusal("chat.no_prompt")))
    return tag("div", *[await _read(words, at, number) for number in range(len(at.columns))])


async def _read(words: Words, at: Talk, number: int) -> Safe:
    column, name = at.columns[number], at.heading(words, number)
    messages = column.messages[:-1] if column.messages[-1]["role"] == "assistant" else column.messages
    try:
        ids, texts = await chat_client.tokens(column.target, messages)
    except Exception as error:
        return show_trouble(words, trouble_of(words, words("chat.failed_raw"), error))
    shown = [tag("span", text, title=id, class_="token") for id, text in zip(ids, texts, strict=False)]
    told = f"{name} · {words('chat.raw_count', n=len(ids))}"
    return tag("section", tag("p", told, class_="calm"), tag("pre", *shown))
