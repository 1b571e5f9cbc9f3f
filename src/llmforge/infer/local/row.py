"""A row: one reply of a request on its way through the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmforge.infer.local.blocks import Place
from llmforge.infer.local.drafts import Drafter, num_alike
from llmforge.infer.local.draw import Draw
from llmforge.infer.local.reply import GrowingReply, Job


@dataclass(eq=False)
class Row:
    """One reply, the tokens before it, and how far they are computed.

    `blocks` hold the keys and values of tokens[:num_computed]; a row that lost them starts again with num_computed 0
    and what was generated so far behind its prompt, which gives the same text.
    """

    reply: GrowingReply
    order: int  # of arrival
    tokens: list[int]
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    place: Place = None  # in the tree of texts, behind the blocks published or found so far
    num_published: int = 0  # blocks
    num_cached: int = 0  # tokens of the prompt that were not computed again, at the first admission
    is_alone: bool = False  # a step it was part of failed: it is tried by itself
    has_drawn: bool = False  # since it was admitted: it decodes, its prompt is done
    drafter: Drafter | None = None
    draft: list[int] = field(default_factory=list)  # what the next step reads behind `tokens`, on trial

    @classmethod
    def of(cls, reply: GrowingReply, order: int) -> Row:
        return cls(reply, order, list(reply.job.prompt_ids))

    @property
    def job(self) -> Job:
        return self.reply.job

    @property
    def adapter(self) -> str | None:
        return self.reply.job.adapter

    @property
    def draw(self) -> Draw:
        return self.reply.draw

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not read yet; its last one's logits choose the next token."""
        return len(self.tokens) - self.num_computed

    def append(self, ids: Sequence[int]) -> None:
        """The reply goes on with these; as many as the draft foresaw are computed."""
        if self.draft and self.drafter is not None:
            num_kept = num_alike(self.draft, ids)
            self.drafter.common.count(num_kept, len(self.draft))
            self.num_computed += num_kept
            self.draft = []
        self.tokens.extend(ids)
        self.has_drawn = True

    def start_again(self) -> None:
        """Forget the cache; nothing of the reply is lost."""
        self.num_computed = self.num_published = 0
        self.blocks, self.place, self.has_drawn, self.draft = [], None, False, []
