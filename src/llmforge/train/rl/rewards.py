"""Where rewards come from: functions, a reward model in this process, a server; and their weighted sum."""

from __future__ import annotations

import functools
import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmforge.config.names import REWARDS
from llmforge.config.schema import Recipe
from llmforge.errors import ForgeError, RecipeError, RunError
from llmforge.train.rl.reward_model import is_url
from llmforge.train.rl.samples import Sample

Scorer = Callable[[Sequence[Sample]], list[float]]
MODEL = "reward_model"
TIMEOUT_S = 120.0


class Source(NamedTuple):
    """One named part of the reward."""

    name: str
    weight: float
    score: Scorer


class Rewards:
    """The weighted sum of all sources of a recipe."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)

    def __call__(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """The reward of each sample, and what each source gave.

        Raises:
            RunError: a reward is NaN or infinite, or a source failed; the message names source and row.
        """
        parts = {source.name: _checked(source, samples) for source in self.sources}
        weights = [source.weight for source in self.sources]
        sums = [sum(w * x for w, x in zip(weights, row, strict=True)) for row in zip(*parts.values(), strict=True)]
        return sums, parts


def _checked(source: Source, samples: Sequence[Sample]) -> list[float]:
    try:
        scores = [float(score) for score in source.score(samples)]
    except ForgeError:
        raise
    except Exception as error:
        raise RunError(f"reward {source.name} failed: {type(error).__name__}: {error}") from error
    if len(scores) != len(samples):
        raise RunError(f"reward {source.name} gave {len(scores)} numbers for {len(samples)} replies")
    for score, sample in zip(scores, samples, strict=True):
        if not math.isfinite(score):
            raise RunError(
                f"reward {source.name} is {score} for the reply {_short(sample.reply)} to {sample.source}; nothing was "
                "learned from it"
            )
    return scores


def reward_sources(recipe: Recipe, model_score: Scorer | None) -> Rewards:
    """The recipe's `reward_model` and `reward_funcs` with their weights.

    Args:
        model_score: scores by the reward model in this process, where the recipe names a folder.

    Raises:
        RecipeError: no source at all, or weights for another number of them.
    """
    rl = recipe.rl
    found: list[tuple[str, Scorer]] = []
    if rl.reward_model is not None and is_url(rl.reward_model):
        found.append((MODEL, RewardServer(rl.reward_model, rl.reward_model_name)))
    elif model_score is not None:
        found.append((MODEL, model_score))
    for name in rl.reward_funcs:
        found.append((name, functools.partial(REWARDS.get(name), options=rl)))
    if not found:
        raise RecipeError(f"reward_model: stage {recipe.finetune.stage} needs it, or reward_funcs, to reward replies")
    weights = rl.reward_weights or [1.0] * len(found)
    if len(weights) != len(found):
        raise RecipeError(
            f"reward_weights: got {len(weights)} numbers, expected {len(found)}, for {', '.join(n for n, _ in found)}"
        )
    return Rewards([Source(name, weight, score) for (name, score), weight in zip(found, weights, strict=True)])


class RewardServer:
    """A server's `/score` over whole conversations, such as `forge-cli api` over a reward model.

    Args:
        base_url: up to and with `/v1`.
        model: served name; None asks the server for its first.
    """

    def __init__(self, base_url: str, model: str | None):
        self.base_url, self.model = base_url.rstrip("/"), model

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        if self.model is None:
            self.model = str(self._ask("/models")["data"][0]["id"])
        conversations = [
            [
                *({"role": message.role, "content": message.content} for message in sample.messages),
                {"role": "assistant", "content": sample.reply},
            ]
            for sample in samples
        ]
        answer = self._ask("/score", {"model": self.model, "conversations": conversations})
        for item, sample in zip(answer["data"], samples, strict=True):
            if item["score"] is None:
                raise RunError(
                    f"reward_model: {self.base_url} gives no score for {sample.source}: {item.get('reason')}"
                )
        return [float(item["score"]) for item in answer["data"]]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read()[:300].decode("utf-8", "replace")
            raise RunError(f"reward_model: {self.base_url}{path} answered {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise RunError(f"reward_model: {self.base_url}{path} gives no answer: {error}") from None


def _short(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")
