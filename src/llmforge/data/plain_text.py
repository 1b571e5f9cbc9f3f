"""Texts compared by what they say: one spelling for full-width letters, case, punctuation and white space."""

from __future__ import annotations

import re
import unicodedata

from llmforge.data.example import Example

# A word of letters and digits, or one character of a script that writes no spaces between words.
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003134f"
WORD = re.compile(f"[{_NO_SPACES}]|[^\\W_{_NO_SPACES}]+")
DIVIDED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; each Chinese, Japanese, Korean or Thai character is one."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """Equal for texts that differ in case, width of letters, punctuation or white space alone.

    A text without any word (only signs) is compared as it is.
    """
    found = words(text)
    return " ".join(found) if found else text.strip()


def question(example: Example) -> str:
    """What is asked: all turns before the last reply, without the system text that all rows share."""
    turns = example.messages[:-1] if example.messages and example.messages[-1].role == "assistant" else example.messages
    return "\n".join(message.content for message in turns if message.role != "system")


def answer(example: Example) -> str:
    """What is learned: the last reply with its calls, the better reply of a pair, or the text itself."""
    if example.text is not None:
        return example.text
    reply = example.chosen or (example.messages[-1] if example.messages else None)
    if reply is None or reply.role != "assistant":
        return ""
    calls = "".join(f"\n{call.name} {call.arguments}" for call in reply.tool_calls)
    return reply.content + calls
