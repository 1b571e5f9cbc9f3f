"""Drafts: tokens that a greedy reply is likely to go on with, so that one step decides several of them. No torch.

A reply that repeats its prompt or itself, as extracted fields, labels and code do, is drafted from there: what stood
behind its last two tokens when they came last, or behind its last one (prompt lookup decoding, Saxena 2023, as in
transformers' `prompt_lookup_num_tokens`). The model reads the draft behind the reply's last token; its own choice is
taken at each place, and the first one that the draft has not foreseen ends it. So a reply is the same as without drafts
(the greedy case of speculative decoding, Leviathan et al. 2023, arXiv:2211.17192).

A step of few rows waits for the weights, not for its products, so that a draft's tokens cost it little; a step of many
rows pays for each. So a draft is as long as its reply's luck and the number of rows make worthwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmforge.infer.local.draw import is_greedy

if TYPE_CHECKING:
    from llmforge.infer.local.reply import Job

LONGEST = 8  # tokens of a draft
FIRST_LUCK = 0.5
LEARNS = 1 / 8  # share of a reply's luck that its last token decides
COMMON_LEARNS = 1 / 128  # and of the luck that new replies begin with


class Luck:
    """How likely the token is foreseen that comes next, if those before it were."""

    def __init__(self, share: float = FIRST_LUCK):
        self.share = share

    def learn(self, was_foreseen: bool, rate: float) -> None:
        self.share += rate * (was_foreseen - self.share)

    def worth(self, price: float) -> int:
        """Tokens worth drafting, where one read in vain costs `price` of what one kept saves."""
        count, chance = 0, self.share
        while count < LONGEST and chance > price * (1 - chance):
            count, chance = count + 1, chance * self.share
        return count


class Drafting:
    """What all replies' drafts have in common; the counts are of tokens, since it began."""

    def __init__(self) -> None:
        self.luck = Luck()
        self.num_drafted = self.num_kept = 0

    def begin(self, job: Job) -> Drafter | None:
        """The drafter of a reply; None where the sampler's choice depends on more than a place's logits."""
        s = job.request.sampling
        penalised = s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty or s.logit_bias
        return None if not is_greedy(s) or penalised or s.logprobs is not None else Drafter(self, len(job.prompt_ids))

    def count(self, num_kept: int, num_drafted: int) -> None:
        """A draft of so many was read, and so many became the reply's."""
        self.num_kept += num_kept
        self.num_drafted += num_drafted


class Drafter:
    """One reply's drafts.

    Args:
        num_given: tokens of the prompt, which nobody had to foresee.
    """

    def __init__(self, common: Drafting, num_given: int):
        self.common, self.luck, self.num_given = common, Luck(common.luck.share), num_given
        self._behind: dict[tuple[int, ...], int] = {}  # one or two tokens -> the place behind them where they came last
        self._next = 1  # first place that is not known as one yet

    def worth(self, tokens: Sequence[int], price: float) -> int:
        """Tokens worth drafting behind these, see Luck; prompt and reply, which only grew since the last call.

        Luck is learnt from every token of the reply, drafted or not.
        """
        for place in range(self._next, len(tokens)):
            if place >= self.num_given and (seen := self._find(tokens, place)) is not None:
                self.luck.learn(tokens[seen] == tokens[place], LEARNS)
                self.common.luck.learn(tokens[seen] == tokens[place], COMMON_LEARNS)
            for count in (1, 2)[:place]:
                self._behind[tuple(tokens[place - count : place])] = place
        self._next = max(self._next, len(tokens))
        return self.luck.worth(price)

    def draft(self, tokens: Sequence[int], length: int) -> list[int]:
        """So many tokens that may come behind these, which `worth` knows; or none."""
        start = self._find(tokens, len(tokens))
        if start is None:
            return []
        drafted = list(tokens[start : start + length])
        while len(drafted) < length:  # the text goes round: what is drafted already is what was copied from
            drafted.append(drafted[len(drafted) - (len(tokens) - start)])
        return drafted

    def _find(self, tokens: Sequence[int], end: int) -> int | None:
        """The place whose token may come behind tokens[:end]."""
        return self._behind.get(tuple(tokens[max(end - 2, 0) : end]), self._behind.get((tokens[end - 1],)))


def num_alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
