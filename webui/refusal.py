"""What the board itself will not do, said in the reader's language."""

from __future__ import annotations

from typing import Any

from llmforge.errors import RecipeError
from llmforge.webui.words import Words


class Refusal(RecipeError):
    """A refusal by the key of its text; as an exception it speaks English, a page says it in the reader's words.

    Args:
        key: a text of text/LANGUAGE/, such as "data.no_file".
        field: the field of the form that it is about, "" where it is about none.
    """

    def __init__(self, key: str, field: str = "", **values: Any):
        super().__init__(Words("en")(key, **values))
        self.key, self.field, self.values = key, field, values

    def said(self, words: Words) -> str:
        return words(self.key, **self.values)


def said(words: Words, error: BaseException) -> str:
    """A refusal in the reader's language, any other error as it is written."""
    return error.said(words) if isinstance(error, Refusal) else str(error)
