"""Drawing replies from the live policy with the local core: no copy of the weights, no cache left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmforge.config.names import CORES
from llmforge.config.schema import Recipe
from llmforge.data.example import EncodedSet, Example
from llmforge.data.prompts import prompt_row
from llmforge.errors import RunError
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds
from llmforge.model.loading import LoadedModel
from llmforge.train.rl.roles import ACTOR, Roles
from llmforge.train.rl.samples import Sample

ROWS_TOGETHER = 64  # replies decoded in one batch


def seed_of(*numbers: int) -> int:
    """A seed from numbers that name a draw: the run's seed, epoch, roll-out, place."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Roller:
    """Draws replies to prompts of a set."""

    def __init__(self, recipe: Recipe, loaded: LoadedModel, roles: Roles):
        rl = recipe.rl
        self.roles, self.loaded = roles, loaded
        self.sampling: dict[str, Any] = {
            "max_new_tokens": recipe.generate.max_new_tokens,
            "temperature": rl.rollout_temperature,
            "top_p": rl.rollout_top_p,
            "top_k": rl.rollout_top_k,
        }
        self.core = CORES.get("local")(roles.policy, loaded.tokenizer, loaded.template, max_rows=ROWS_TOGETHER)

    @torch.no_grad()
    def draw(
        self, prompts: EncodedSet, examples: Sequence[Example], chosen: Sequence[int], seeds: Sequence[int], n: int
    ) -> list[Sample]:
        """`n` replies to each chosen prompt, those to one prompt together.

        Raises:
            RunError: a prompt that cannot be answered, by its file and row.
        """
        ids = [tuple(prompts.ids_of(row).tolist()) for row in chosen]
        requests = [
            GenerateRequest("", TokenIds(prompt), Sampling(**self.sampling, seed=seed, n=n))
            for prompt, seed in zip(ids, seeds, strict=True)
        ]
        with self.roles.using(ACTOR):
            replies = self.core.generate_all(requests)
        samples = []
        for row, prompt, answers in zip(chosen, ids, replies, strict=True):
            example = examples[int(prompts.examples[row])]
            asked = prompt_row(0, example, self.loaded.tokenizer, self.loaded.template)
            for reply in answers:
                if reply.error or not reply.token_ids:
                    raise RunError(f"{example.source} cannot be answered: {reply.error or 'no token came'}")
                samples.append(
                    Sample(
                        messages=asked.messages,
                        reply=reply.text,
                        label=asked.label,
                        source=example.source,
                        ended=reply.finish_reason != "length",
                        num_tokens=len(reply.token_ids),
                        prompt_ids=prompt,
                        reply_ids=reply.token_ids,
                        tools=example.tools,
                    )
                )
        return samples

    @torch.no_grad()
    def greedy(self, prompts: Sequence[tuple[int, ...]], num_tokens: int) -> list[tuple[int, ...]]:
        """The likeliest next tokens after each prompt, as the generator finds them."""
        sampling = Sampling(max_new_tokens=num_tokens, temperature=0.0)
        requests = [GenerateRequest("", TokenIds(prompt), sampling) for prompt in prompts]
        with self.roles.using(ACTOR):
            return [reply[0].token_ids for reply in self.core.generate_all(requests)]

    def release(self) -> None:
        """Give the cache's memory back before the backward pass needs it; its content is of old weights soon anyway."""
        self.core.invalidate()
        self.core.release()
