"""What the board says, in Chinese and English: text/LANGUAGE/PAGE.json, with the same keys in both languages.

`mark(key)` is for labels that are built once: the page is sent in the reader's language. `Words(language)(key, n=3)` is
for what is said later. A text "key.one" is taken for n=1 where there is one, else "key".
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

LANGUAGES = ("en", "zh")
COOKIE = "forge_language"
FOLDER = Path(__file__).parent / "text"


@functools.cache
def texts(language: str) -> Mapping[str, str]:
    """All texts of a language: "runs.stop" is the key "stop" of runs.json."""
    found = {}
    for path in sorted((FOLDER / language).glob("*.json")):
        page = json.loads(path.read_text(encoding="utf-8"))
        found.update({f"{path.stem}.{key}": text for key, text in page.items()})
    return found


@functools.cache
def key_help(language: str) -> Mapping[str, str]:
    """What recipe keys are for, by name; empty for English, which the schema itself holds."""
    path = FOLDER / f"key_help.{language}.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def mark(key: str) -> Any:
    """A text in a component's label, value or placeholder, translated when the page is sent.

    Raises:
        KeyError: there is no such text.
    """
    from gradio.i18n import I18nData

    texts("en")[key]  # a key that is missing is seen when the board is built, not by a reader
    return I18nData(key)


class Words:
    """The texts of one reader's language."""

    def __init__(self, language: str):
        self.language = language if language in LANGUAGES else "en"

    def __call__(self, key: str, /, **values: Any) -> str:
        """The text with its `{name}` filled in; whole numbers get their thousands marked.

        Raises:
            KeyError: there is no such text.
        """
        known = texts(self.language)
        if values.get("n") == 1 and f"{key}.one" in known:
            key = f"{key}.one"
        shown = {n: f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else v for n, v in values.items()}
        return known[key].format(**shown) if shown else known[key]

    def choices(self, prefix: str, names: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
        """(text, name) for the choices of a component."""
        return [(self(f"{prefix}.{name}"), name) for name in names]


def language_of(headers: Mapping[str, str]) -> str:
    """The language of a request: what the browser chose on the board before, else the first one it accepts."""
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and value in LANGUAGES:
            return value
    first = headers.get("accept-language", "").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"


def words_of(request: gr.Request | None) -> Words:
    """The words for whoever asks; English where nobody does."""
    return Words(language_of(request.headers) if request is not None else "en")
