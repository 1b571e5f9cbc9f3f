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


def encode_parts(parts: Iterable[Part], tokenizer: Tokenizer, marks: tuple[str, ...], name: str) -> Encoded:
    """Apply the tokenisation rule to the parts of a row; `marks` and `name` are the template's.

    Raises:
        RecipeError: the mark whose label must be eos is to be learned itself.
    """
    pieces: list[_Piece] = []
    ends: bool | None = None  # a reply without an end token stands just before; whether it is learned
    for part in parts:
        for piece in tokenizer.split_marks(part.text, marks) if part.mark else (part.text,):
            last = pieces[-1] if pieces else None
            if (
                last
                and isinstance(piece, str)
                and isinstance(last.what, str)
                and last.learn == part.learn
                and ends is None
            ):
                pieces[-1] = last._replace(what=last.what + piece)
            elif piece != "":
                pieces.append(_Piece(piece, part.learn, bool(ends)))
                ends = None
        ends = part.learn if part.ends else ends
    ids: list[int] = []
    labels: list[int] = []
    before: Before = "nothing"
    for i, (what, learn, end) in enumerate(pieces):
        new = [what] if isinstance(what, int) else tokenizer.ids(_stripped(tokenizer, pieces, i), before)
        if end and learn:
            raise RecipeError(
                f"template {name!r} learns eos at the next turn's mark, so train_on_prompt cannot be used"
            )
        ids += new
        labels += new if learn else [IGNORE] * len(new)
        if end and new and tokenizer.eos_id is not None:
            labels[-len(new)] = tokenizer.eos_id
        before = "control" if isinstance(what, int) else "text"
    if ends is not None and tokenizer.eos_id is not None:
        ids.append(tokenizer.eos_id)
        labels.append(tokenizer.eos_id if ends else IGNORE)
    return Encoded(ids, labels)


class _Piece(NamedTuple):
    """A control token's id, or the text between two boundaries; `end`: the label of its first token is eos."""

    what: int | str
    learn: bool
    end: bool


def _stripped(tokenizer: Tokenizer, pieces: list[_Piece], i: int) -> str:
    """Text number `i` without the white space that the control tokens beside it swallow."""
    text = str(pieces[i].what)
    if i and isinstance(before := pieces[i - 1].what, int) and tokenizer.strips(before)[1]:
        text = text.lstrip()
    if i + 1 < len(pieces) and isinstance(behind := pieces[i + 1].what, int) and tokenizer.strips(behind)[0]:
        text = text.rstrip()
    return text
