"""The board as a web application: one page per address, built by the modules of webui/pages."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import gradio as gr

from llmforge.webui.board import Board
from llmforge.webui.guard import Guard
from llmforge.webui.markup import Safe, tag
from llmforge.webui.sending import Sending
from llmforge.webui.theme import FONTS, theme
from llmforge.webui.uploads import MAX_BYTES
from llmforge.webui.words import LANGUAGES, mark, texts

HERE = Path(__file__).parent
# Address -> module of webui/pages; "" is the first page. A page's name is the text "common.NAME".
PAGES = {
    "": "home",
    "data": "data",
    "make": "make",
    "review": "review",
    "train": "train",
    "runs": "runs",
    "chat": "chat",
    "eval": "eval",
}


def build(board: Board) -> gr.Blocks:
    """All pages as one gradio application."""
    with gr.Blocks(title="Forge", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Navbar(visible=False, main_page_name="Forge")
        _page(board, "")
    for address in [address for address in PAGES if address]:
        with blocks.route(PAGES[address], f"/{address}"):
            gr.Navbar(visible=False, main_page_name="Forge")
            _page(board, address)
    return blocks


def _page(board: Board, address: str) -> None:
    """The bar of pages, the heading, and what the page's module builds."""
    name = PAGES[address]
    gr.HTML(_bar(address), elem_id="bar")
    with gr.Column(elem_id="page", elem_classes=f"page-{name}"):
        gr.HTML(tag("h1", _marked(f"common.{name}"), id="title"), elem_id="heading")
        importlib.import_module(f"llmforge.webui.pages.{name}").build(board)


def _bar(here: str) -> Safe:
    links = [
        tag("a", _marked(f"common.{name}"), href=address or "./", aria_current="page" if address == here else None)
        for address, name in PAGES.items()
    ]
    switches = (
        tag("button", _marked("common.language"), type="button", id="language", title=_marked("common.language_of")),
        tag("button", "◐", type="button", id="dark", aria_label=_marked("common.dark"), title=_marked("common.dark")),
    )
    return tag(
        "div",
        tag("a", _marked("common.skip"), href="#title", class_="skip"),
        tag("a", "Forge", href="./", class_="brand"),
        tag("nav", *links, aria_label=_marked("common.pages")),
        tag("div", *switches, class_="switches"),
        class_="bar",
    )


def _marked(key: str) -> Safe:
    return Safe(str(mark(key)))


def create_app(board: Board, password: str | None = None) -> Any:
    """The ASGI application: guard -> sending -> gradio."""
    import fastapi

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/alive", _alive)
    with warnings.catch_warnings():
        # gradio says that pages are not rendered on the server, which nobody asked for
        warnings.filterwarnings("ignore", message="SSR mode")
        gr.mount_gradio_app(
            app,
            build(board).queue(default_concurrency_limit=8),
            path="/",
            footer_links=[],
            run_history=False,
            allowed_paths=[str(board.root)],
            blocked_paths=[str(board.uploads)],
            show_error=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            i18n=gr.I18n(**{language: dict(texts(language)) for language in LANGUAGES}),
            theme=theme(),
            css=(HERE / "board.css").read_text(encoding="utf-8").replace("FONTS", FONTS),
        )
    return Guard(Sending(app, head()), password)


async def _alive() -> dict[str, bool]:
    """Asked by open pages every few seconds."""
    return {"alive": True}


def head() -> str:
    """What stands first in every page's head: the title's icon, and the script of the bar and the keys."""
    said = {
        language: {name: texts(language)[f"common.{name}"] for name in ("copied", "gone", "reset", "copy")}
        for language in LANGUAGES
    }
    script = (HERE / "board.js").read_text(encoding="utf-8").replace("TEXTS", json.dumps(said, ensure_ascii=False))
    return f"<script>{script}</script>"
