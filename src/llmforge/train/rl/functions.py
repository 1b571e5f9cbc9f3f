"""The reward functions that come with Forge. Plugins add more: REWARDS.add("name", function)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llmforge.config.schema import RlConfig
from llmforge.errors import RecipeError
from llmforge.train.rl.samples import Sample


def json_valid(samples: Sequence[Sample], options: RlConfig) -> list[float]:
    """1 for a reply that is one JSON object or list and nothing else, 0 for any other."""
    return [float(_is_json(sample.reply)) for sample in samples]


def exact_match(samples: Sequence[Sample], options: RlConfig) -> list[float]:
    """1 for a reply equal to the row's own, blanks around them left out, else 0.

    Raises:
        RecipeError: a row without a reply of its own.
    """
    for sample in samples:
        if not sample.label:
            raise RecipeError(f"reward_funcs: exact_match needs a reply to compare with; {sample.source} has none")
    return [float(sample.reply.strip() == sample.label.strip()) for sample in samples]


def regex(samples: Sequence[Sample], options: RlConfig) -> list[float]:
    """1 for a reply in which `reward_pattern` fits somewhere, else 0.

    Raises:
        RecipeError: no pattern, or one that is no regular expression.
    """
    if options.reward_pattern is None:
        raise RecipeError("reward_pattern: missing; the reward function regex looks for it")
    try:
        pattern = re.compile(options.reward_pattern)
    except re.error as error:
        raise RecipeError(f"reward_pattern: {options.reward_pattern!r} is no regular expression: {error}") from None
    return [float(pattern.search(sample.reply) is not None) for sample in samples]


def ended(samples: Sequence[Sample], options: RlConfig) -> list[float]:
    """1 for a reply that comes to its end by itself, 0 for one that is cut at max_new_tokens.

    Beside a reward model, which knows whole replies alone and may like a half one for no reason.
    """
    return [float(sample.ended) for sample in samples]


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False
