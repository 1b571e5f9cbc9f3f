"""Pages on their way to the browser: in the reader's language from the first byte, without links to other hosts."""

from __future__ import annotations

import json
import re
from typing import Any

from llmforge.webui.words import language_of, texts

# gradio writes a label to be translated as `__i18n__{"__type__": "translation_metadata", "key": "home.title"}`, and as
# the object alone where the label is the whole value; inside a JSON string the quotes are escaped.
MARKED = re.compile(r'__i18n__\{\\"__type__\\": ?\\"translation_metadata\\", ?\\"key\\": ?\\"([\w.-]+)\\"\}')
WHOLE = re.compile(r'\{"__type__": ?"translation_metadata", ?"key": ?"([\w.-]+)"\}')
OUTSIDE = re.compile(r"<(?:meta[^>]*(?:gradio\.app|gradio-app|@Gradio|og:|twitter:)[^>]*|link[^>]*https?://[^>]*)>")


def translate(page: str, language: str, head: str) -> str:
    """The page in `language`, with `head` at the start of its head, and without links to gradio's own pages."""
    known = texts(language)
    page = MARKED.sub(lambda m: json.dumps(known.get(m[1], m[1]), ensure_ascii=False)[1:-1].replace("</", "<\\/"), page)
    page = WHOLE.sub(lambda m: json.dumps(known.get(m[1], m[1]), ensure_ascii=False).replace("</", "<\\/"), page)
    page = OUTSIDE.sub("", page)
    page = page.replace('lang="en"', f'lang="{"zh-CN" if language == "zh" else "en"}"', 1)
    return page.replace("<head>", "<head>" + head, 1)


class Sending:
    """ASGI: translates the HTML pages and gradio's config, passes everything else on as it comes."""

    def __init__(self, app: Any, head: str):
        self.app, self.head = app, head

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        language = language_of(headers)
        start: dict[str, Any] | None = None
        body = b""

        async def look(message: Any) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_page(scope["path"], message):
                start = message
            elif start is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await self._send(start, body, language, send)
            else:
                await send(message)

        await self.app(scope, receive, look)

    async def _send(self, start: dict[str, Any], body: bytes, language: str, send: Any) -> None:
        page = translate(body.decode("utf-8"), language, self.head).encode("utf-8")
        kept = [(n, v) for n, v in start["headers"] if n.lower() not in (b"content-length", b"etag", b"last-modified")]
        about = [
            (b"content-length", str(len(page)).encode()),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
            (b"x-frame-options", b"DENY"),
        ]
        await send({**start, "headers": kept + about})
        await send({"type": "http.response.body", "body": page})


def _is_page(path: str, message: Any) -> bool:
    if path.startswith("/gradio_api/"):
        return False  # files of the project, as they are
    kind = next((v for n, v in message["headers"] if n.lower() == b"content-type"), b"")
    return kind.startswith(b"text/html") or path.endswith("/config")
