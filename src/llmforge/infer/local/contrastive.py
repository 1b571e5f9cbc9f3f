"""Contrastive search: among the likeliest tokens, the one whose hidden state repeats the text before it least.

Of the k likeliest tokens v the one with the largest (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) comes next, where h_v
is the last hidden state after appending v and j runs over all tokens before it. alpha 0 or k 1 is greedy.

Source: Su et al. 2022, arXiv:2202.06417, eq. 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmforge.infer.local.forward import CachedForward
from llmforge.infer.local.hidden import last_states


def pick(probabilities: Tensor, states: Tensor, context: Tensor, alpha: float) -> int:
    """The place of the candidate that wins.

    Args:
        probabilities: (k,) of the candidates.
        states: (k, H) hidden states of the candidates.
        context: (t, H) hidden states of the tokens before them.
    """
    likeness = F.normalize(states.float(), dim=-1) @ F.normalize(context.float(), dim=-1).t()  # (k, t)
    scores = (1 - alpha) * probabilities.float() - alpha * likeness.max(dim=1).values
    return int(scores.argmax())


class ContrastiveSearch:
    """One reply being written. `logits` are those of its next token; `take` chooses it and computes the next ones.

    The model reads the candidates as rows of one batch, and keeps the cache of the one that wins.

    Raises:
        RequestError: the model keeps no cache that can be continued.
    """

    def __init__(self, model: Any, prompt_ids: Sequence[int], *, k: int, alpha: float, pad_id: int = 0):
        self.k, self.alpha = k, alpha
        self._model = model
        self._forward = CachedForward(model, pad_id)
        with last_states(model) as seen:
            self.logits = self._forward.prefill([prompt_ids])[0]  # (vocab,)
        self._context = seen.states[0]  # (t, H)

    @torch.no_grad()
    def take(self, scores: Tensor) -> int:
        """The next token.

        `scores` (vocab,) are `logits` after penalties and grammar, -inf where a token may not come.
        """
        probabilities, ids = scores.float().softmax(dim=-1).topk(min(self.k, len(scores)))
        likely = probabilities > 0
        probabilities, ids = probabilities[likely], ids[likely]
        self._forward.select([0] * len(ids))
        with last_states(self._model) as seen:
            logits = self._forward.step(ids.tolist())
        states = seen.states[:, -1]
        place = pick(probabilities, states, self._context, self.alpha)
        self._forward.select([place])
        self._context = torch.cat([self._context, states[place : place + 1]])
        self.logits = logits[place]
        return int(ids[place])
