"""Many rows encoded at once: their texts go to the tokenizer in one call, their ids into flat arrays.

The ids are those of `Template.encode`, since both encode the chunks that the template cuts. What makes it fast: rows of
one shape (the same roles in the same order, plain replies) are cut along an outline that is made once, and labels and
lengths are computed for the whole block. Rates are in docs/data_build.md; `benchmarks/encode_rows.py` repeats them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from llmforge.data.example import IGNORE, Message
from llmforge.data.templates.parts import Chunk
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Before, Tokenizer

GAP = re.compile("\0(\\d+)\0")  # stands for the text of message number so-and-so in an outline
MODES: tuple[Before, ...] = ("nothing", "control", "text")


def gap(number: int) -> str:
    return f"\0{number}\0"


class _Text(NamedTuple):
    """A text of an outline: fixed words and numbers of messages in turn, and where its ids go."""

    place: int
    words: tuple[str, ...]
    messages: tuple[int, ...]
    after: Before
    strip_left: bool
    strip_right: bool

    def fill(self, contents: Sequence[str]) -> str:
        if self.messages:
            text = self.words[0]
            for number, word in zip(self.messages, self.words[1:], strict=True):
                text = f"{text}{contents[number]}{word}"
        else:
            text = self.words[0]
        text = text.lstrip() if self.strip_left else text
        return text.rstrip() if self.strip_right else text


class Outline(NamedTuple):
    """Rows of one shape: the ids of control tokens, gaps for texts, and what is learned."""

    ids: tuple[list[int] | None, ...]  # None where a text goes
    learn: tuple[bool, ...]
    ends: tuple[int, ...]  # chunks whose first label is eos
    texts: tuple[_Text, ...]


def outline(chunks: Sequence[Chunk]) -> Outline:
    """The outline of chunks in whose texts GAP stands for the contents of messages."""
    ids = tuple([chunk.what] if isinstance(chunk.what, int) else None for chunk in chunks)
    texts = []
    for place, chunk in enumerate(chunks):
        if isinstance(chunk.what, str):
            pieces = GAP.split(chunk.what)
            numbers = tuple(map(int, pieces[1::2]))
            texts.append(_Text(place, tuple(pieces[::2]), numbers, chunk.after, chunk.strip_left, chunk.strip_right))
    ends = tuple(place for place, chunk in enumerate(chunks) if chunk.end)
    return Outline(ids, tuple(chunk.learn for chunk in chunks), ends, tuple(texts))


class FlatRows(NamedTuple):
    """Encoded rows in flat arrays: ids and labels (tokens,) int32, lengths (rows,) int64."""

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray


class Cutter:
    """Cuts conversations into chunks; those of one shape along one outline."""

    def __init__(self, template: Template, tokenizer: Tokenizer, policy: LabelPolicy):
        self.template, self.tokenizer, self.policy = template, tokenizer, policy
        # A chat template in jinja may do anything with a text, so that no outline can be taken from it.
        self.regular = type(template) is Template and "\0" not in (template.default_system or "")
        self.outlines: dict[tuple[Any, ...], Outline] = {}

    def cut(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Outline, list[str]]:
        """The row's outline and the texts of its messages.

        Raises:
            RecipeError: the conversation does not fit the template.
        """
        contents = [message.content for message in messages]
        if not self.regular or tools or not all(map(self.is_plain, messages)):
            return self.alone(messages, tools), contents
        if self.template.trim:
            contents = [content.strip() for content in contents]
        shape = tuple([(message.role, message.train) for message in messages])
        found = self.outlines.get(shape)
        if found is None:
            gaps = [Message(m.role, gap(i), train=m.train) for i, m in enumerate(messages)]
            found = self.outlines[shape] = outline(self.chunks(gaps, ()))
        return found, contents

    def is_plain(self, message: Message) -> bool:
        """Whether the template writes the message's text as it is, whatever it says."""
        text = message.content
        if message.tool_calls or message.reasoning is not None or not text or text.isspace() or "\0" in text:
            return False
        return self.template.thinking is None or "think>" not in text

    def alone(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Outline:
        """The outline of one row, whose texts hold no gaps."""
        chunks = self.chunks(messages, tools)
        bare = outline([chunk._replace(what="") if isinstance(chunk.what, str) else chunk for chunk in chunks])
        return bare._replace(texts=tuple(t._replace(words=(str(chunks[t.place].what),)) for t in bare.texts))

    def chunks(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Chunk]:
        return self.template.chunks(self.tokenizer, messages, tools, policy=self.policy)


class Block:
    """Rows gathered until they are encoded together."""

    def __init__(self) -> None:
        self.ids: list[list[int] | None] = []
        self.learn: list[bool] = []
        self.counts: list[int] = []  # chunks of each row
        self.ends: list[int] = []
        self.texts: dict[Before, list[str]] = {mode: [] for mode in MODES}
        self.places: dict[Before, list[int]] = {mode: [] for mode in MODES}

    def add(self, row: Outline, contents: Sequence[str]) -> None:
        start = len(self.ids)
        self.ids += row.ids
        self.learn += row.learn
        self.counts.append(len(row.ids))
        self.ends += [start + place for place in row.ends]
        for text in row.texts:
            self.texts[text.after].append(text.fill(contents))
            self.places[text.after].append(start + text.place)

    def encode(self, tokenizer: Tokenizer) -> FlatRows:
        """Ids, labels and lengths of all rows; the rows' first labels are not yet IGNORE."""
        chunks: list[Any] = self.ids
        for mode in MODES:
            # A system text or a label that many rows have is encoded once.
            number = {text: i for i, text in enumerate(dict.fromkeys(self.texts[mode]))}
            found = tokenizer.ids_of_many(list(number), mode)
            for place, text in zip(self.places[mode], self.texts[mode], strict=True):
                chunks[place] = found[number[text]]
        sizes = np.fromiter(map(len, chunks), np.int64, len(chunks))
        flat = np.fromiter(chain.from_iterable(chunks), np.int32, int(sizes.sum()))
        labels = np.where(np.repeat(np.array(self.learn, bool), sizes), flat, np.int32(IGNORE))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        if self.ends and tokenizer.eos_id is not None:
            ends = np.array(self.ends, np.int64)
            labels[starts[ends[sizes[ends] > 0]]] = tokenizer.eos_id
        bounds = starts[np.concatenate([[0], np.cumsum(np.array(self.counts, np.int64))])]
        return FlatRows(flat, labels, np.diff(bounds))
