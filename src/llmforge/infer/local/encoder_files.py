"""What the files of a model tell about reading with it: whether it writes at all, pooling, longest text. No torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmforge.data.templates.find import TEMPLATES
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer, load_tokenizer
from llmforge.errors import RecipeError

WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of names of models that write
POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


def is_encoder(folder: Path) -> bool:
    """Whether the model in `folder` has no head that writes: it is there to be read."""
    config = _json(folder / "config.json")
    names = config.get("architectures") or []
    return bool(names) and not any(name.endswith(WITH_HEAD) for name in names) and not config.get("is_decoder", False)


def own_pooling(folder: Path) -> str | None:
    """How sentence-transformers' files beside a model say it is pooled; None when they say nothing.

    Raises:
        RecipeError: a way that is not offered here.
    """
    modes = _json(folder / "1_Pooling" / "config.json")
    asked = [name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True]
    if not asked:
        return None
    if len(asked) > 1 or asked[0] not in POOLING_MODES:
        raise RecipeError(
            f"embedders: {folder} is pooled by {' and '.join(asked)}, expected one of {', '.join(POOLING_MODES)}; say "
            "pooling: mean, last or cls"
        )
    return POOLING_MODES[asked[0]]


def own_limit(folder: Path) -> int | None:
    """Tokens that sentence-transformers' files beside a model let it read."""
    limit = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return limit if isinstance(limit, int) else None


def load_encoder_text(folder: Path) -> tuple[Tokenizer, Template]:
    """Tokenizer of a model that only reads, and the template that stands for having none."""
    return load_tokenizer(folder), replace(TEMPLATES.get("empty"), eos_follows=False)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, {} where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
