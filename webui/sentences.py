"""Sentences that other rooms say in English (the check, a run's end), in the reader's language.

text/sentences.LANGUAGE.json maps a sentence, with `{name}` where it varies, to the same in that language. A sentence
that is not in it is shown as it is, marked as English.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping

from llmforge.webui.markup import Safe, escape, tag
from llmforge.webui.words import FOLDER, Words

PLACE = re.compile(r"(?:recipe )?line (\d+): ")
MEANT = re.compile(r"\.? Did you mean '([^']+)'\?\.?")
KNOWN = re.compile(r"\.? Known: (.+)$", re.DOTALL)


@functools.cache
def sentences(language: str) -> Mapping[str, str]:
    """The known sentences with their translations; empty for English."""
    path = FOLDER / f"sentences.{language}.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def translated(words: Words, text: str) -> str | None:
    """The sentence in the reader's language; None when it is not known there."""
    if words.language == "en" or not text:
        return text
    line = PLACE.match(text)
    rest = text[line.end() :] if line else text
    meant, known = MEANT.search(rest), KNOWN.search(rest)
    found = _find(words.language, KNOWN.sub("", MEANT.sub("", rest)))
    if found is None:
        return None
    parts = [words("train.said_line", line=line[1]) if line else "", found]
    if meant:
        parts.append(words("train.said_meant", name=meant[1]))
    if known:
        parts.append(words("train.said_known", names=known[1]))
    return "".join(parts)


def in_words(words: Words, text: str) -> str:
    """The sentence in the reader's language where it is known, else as it is."""
    return translated(words, text) or text


def show_sentence(words: Words, text: str) -> Safe:
    """The same as HTML; one that stays English is marked as English."""
    told = translated(words, text)
    return tag("span", text, lang="en") if told is None else escape(told)


def _find(language: str, text: str) -> str | None:
    for pattern, told in _patterns(language):
        if match := pattern.fullmatch(text):
            values = {name: _find(language, value) or value for name, value in match.groupdict().items()}
            return told.format(**values)
    return None


@functools.cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], str]]:
    """The sentences as patterns, the ones that say most first."""
    table = sentences(language)
    order = sorted(table, key=lambda sentence: -len(_PLACEHOLDER.sub("", sentence)))
    return [(_pattern(sentence), table[sentence]) for sentence in order]


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def _pattern(sentence: str) -> re.Pattern[str]:
    parts, end = [], 0
    for place in _PLACEHOLDER.finditer(sentence):
        parts += [re.escape(sentence[end : place.start()]), f"(?P<{place[1]}>.+?)"]
        end = place.end()
    return re.compile("".join([*parts, re.escape(sentence[end:])]), re.DOTALL)
