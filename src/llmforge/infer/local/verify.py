"""What the model says about drafts: its own choice behind each of their tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from llmforge.infer.local.draw import Choice
from llmforge.infer.local.grammar import constrain
from llmforge.infer.local.row import Row
from llmforge.infer.local.sampler import likeliest


class Verdicts:
    """The logits of a step that read drafts.

    Args:
        due: the step's rows.
        logits: (places, vocabulary), of each row its own place and then those of its draft.
    """

    def __init__(self, due: Sequence[Row], logits: Tensor):
        at = list(itertools.accumulate((1 + len(row.draft) for row in due), initial=0))
        self._logits = logits
        self._at = {id(row): first for row, first in zip(due, at, strict=False)}
        self._likeliest: Sequence[Choice | None] = ()
        self.own = logits  # (rows, vocabulary): behind what the rows had before the step
        if len(logits) > len(due):
            self._likeliest = likeliest(logits)
            self.own = logits[torch.tensor(at[:-1], device=logits.device)]

    def behind(self, row: Row, taken: Sequence[int]) -> Choice | None:
        """What comes behind these tokens, which a row has taken in this step; None where its draft is not like them.

        Also where the logits are no numbers: the next step asks again, and says so.
        """
        if list(taken) != row.draft[: len(taken)]:
            return None
        place = self._at[id(row)] + len(taken)
        matcher = row.reply.matcher
        if matcher is None:
            return self._likeliest[place]
        return likeliest(constrain(self._logits[place : place + 1], [matcher]))[0]
