"""From the parts of a row to token ids and labels.

Tokenisation rule: boundaries are control tokens and the start and end of every learned span; the text between two
boundaries is encoded in one call, in which no control token is recognised. So what a user types stays text, and the
number of control tokens in a row depends on its structure alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.templates.slot import Part
from llmforge.data.tokenizer import Before, Tokenizer
from llmforge.errors import RecipeError


class Chunk(NamedTuple):
    """What stands between two boundaries: a control token's id, or a text that is encoded in one call.

    Attributes:
        learn: its tokens are their own labels; otherwise IGNORE.
        end: the label of its first token is eos, because a reply without an end token stands before it.
        after: what stands before a text in its row.
        strip_left, strip_right: the control token beside it swallows white space.
    """

    what: int | str
    learn: bool
    end: bool = False
    after: Before = "nothing"
    strip_left: bool = False
    strip_right: bool = False


def cut(parts: Iterable[Part], tokenizer: Tokenizer, marks: tuple[str, ...], name: str) -> list[Chunk]:
    """A row's parts cut at its boundaries; `marks` and `name` are the template's.

    Raises:
        RecipeError: the mark whose label must be eos is to be learned itself.
    """
    chunks: list[Chunk] = []
    ends: bool | None = None  # a reply without an end token stands just before; whether it is learned
    for part in parts:
        for piece in tokenizer.split_marks(part.text, marks) if part.mark else (part.text,):
            last = chunks[-1] if chunks else None
            joins = last and isinstance(last.what, str) and last.learn == part.learn and ends is None
            if last and joins and isinstance(piece, str):
                chunks[-1] = last._replace(what=f"{last.what}{piece}")
            elif piece != "":
                if ends and part.learn:
                    raise RecipeError(
                        f"template {name!r} learns eos at the next turn's mark, so train_on_prompt cannot be used"
                    )
                chunks.append(_placed(piece, part.learn, bool(ends), last, tokenizer))
                ends = None
                if last and isinstance(piece, int) and isinstance(last.what, str) and tokenizer.strips(piece)[0]:
                    chunks[-2] = last._replace(strip_right=True)
        ends = part.learn if part.ends else ends
    if ends is not None and tokenizer.eos_id is not None:
        chunks.append(Chunk(tokenizer.eos_id, ends))
    return chunks


def _placed(what: int | str, learn: bool, end: bool, last: Chunk | None, tokenizer: Tokenizer) -> Chunk:
    """The chunk with what it needs to know about the one before it."""
    if isinstance(what, int) or last is None:
        return Chunk(what, learn, end)
    if isinstance(last.what, str):
        return Chunk(what, learn, end, "text")
    return Chunk(what, learn, end, "control", strip_left=tokenizer.strips(last.what)[1])


def text_of(chunk: Chunk) -> str:
    """The text that is encoded."""
    text = str(chunk.what)
    text = text.lstrip() if chunk.strip_left else text
    return text.rstrip() if chunk.strip_right else text


def encode_chunks(chunks: Iterable[Chunk], tokenizer: Tokenizer) -> Encoded:
    """Ids and labels of one row; `data/encode_block.py` does the same for many rows at once."""
    ids: list[int] = []
    labels: list[int] = []
    for chunk in chunks:
        new = [chunk.what] if isinstance(chunk.what, int) else tokenizer.ids(text_of(chunk), chunk.after)
        ids += new
        labels += new if chunk.learn else [IGNORE] * len(new)
        if chunk.end and new and tokenizer.eos_id is not None:
            labels[-len(new)] = tokenizer.eos_id
    return Encoded(ids, labels)
