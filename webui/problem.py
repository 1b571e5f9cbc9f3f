"""The one way the board shows what went wrong: what, why, how to fix it, a code, and details to copy."""

from __future__ import annotations

import hashlib
import os
import re
import traceback
from dataclasses import dataclass

from llmforge import __version__
from llmforge.errors import ForgeError
from llmforge.webui.markup import Safe, tag
from llmforge.webui.refusal import Refusal
from llmforge.webui.sentences import in_words
from llmforge.webui.words import Words

SECRET_LINE = re.compile(
    r"(?i)\b((?:[\w.-]*[_-])?(?:api[_-]?key|token|secret|password|authorization))(\s*[:=]\s*)(\S+)"
)
SECRET_NAME = re.compile(r"(?i)key|token|secret|password")
SECRET_VALUE = re.compile(r"\b(sk-|hf_|ms-|Bearer\s+)[\w.-]{6,}")


@dataclass(frozen=True)
class Trouble:
    """One thing that went wrong, in the reader's language; `details` may hold paths and tracebacks."""

    what: str
    why: str = ""
    fix: str = ""
    details: str = ""

    @property
    def code(self) -> str:
        """A short name that stays the same for the same trouble, for searching and reporting."""
        digits = re.sub(r"\d+", "0", self.what + self.why)
        return "FORGE-" + hashlib.sha256(digits.encode()).hexdigest()[:5].upper()


def trouble_of(words: Words, what: str, error: BaseException) -> Trouble:
    """An exception as trouble: the board's refusals in the reader's language, other errors of ours in their words, any
    other with its traceback in the details."""
    if isinstance(error, Refusal):
        return Trouble(what, error.said(words))
    if isinstance(error, ForgeError):
        first, _, rest = str(error).partition("\n")
        return Trouble(what, in_words(words, first), details=rest)
    trace = "".join(traceback.format_exception(error))
    return Trouble(what, f"{type(error).__name__}: {error}", words("common.fix_report"), trace)


def mask(text: str) -> str:
    """The text with everything that looks like a key or a password taken out."""
    text = SECRET_VALUE.sub(lambda m: m[1] + "***", text)
    text = SECRET_LINE.sub(lambda m: m[1] + m[2] + "***", text)
    for name, value in os.environ.items():
        if len(value) > 7 and SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return text


def show_trouble(words: Words, trouble: Trouble) -> Safe:
    """The trouble as HTML, announced to screen readers; the button copies a report without secrets."""
    told = (f"{trouble.code}  forge {__version__}", trouble.what, trouble.why, trouble.fix, trouble.details)
    report = mask("\n".join(part for part in told if part))
    details = tag("details", tag("summary", words("common.details")), tag("pre", mask(trouble.details)))
    return tag(
        "div",
        tag("strong", trouble.what),
        tag("p", mask(trouble.why)) if trouble.why else None,
        tag("p", tag("span", words("common.fix"), class_="label"), " ", trouble.fix) if trouble.fix else None,
        details if trouble.details else None,
        tag(
            "div",
            tag("code", trouble.code),
            tag("button", words("common.copy_report"), type="button", class_="copy", data_copy=report),
            class_="foot",
        ),
        class_="trouble",
        role="alert",
    )
