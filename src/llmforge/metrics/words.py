"""Words of a text for ROUGE; Chinese has no spaces between them, so jieba finds them."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from typing import Any

from llmforge.errors import require

CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@functools.cache
def load_segmenter() -> Any:
    """A jieba tokenizer with its plain dictionary; words that other code adds to jieba's own do not change scores.

    Raises:
        RecipeError: jieba is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1 of 2020 has invalid escapes and imports pkg_resources
        jieba = require("jieba", "eval", "the metric rouge")
    jieba.setLogLevel(logging.CRITICAL)  # or it tells on stderr that it builds its prefix dictionary
    segmenter = jieba.Tokenizer()
    segmenter.initialize()
    return segmenter


def segment(text: str) -> list[str]:
    """Words, punctuation and spaces of `text`; joined they are the text again."""
    return list(load_segmenter().cut(text))


def is_chinese(text: str) -> bool:
    """Whether the text holds a Chinese character."""
    return CHINESE.search(text) is not None
