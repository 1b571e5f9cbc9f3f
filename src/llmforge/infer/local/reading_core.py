"""The core of an engine whose models only read: it has nothing to step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmforge.data.templates.find import get_template
from llmforge.infer.local.core import CoreStats
from llmforge.infer.local.intake import Limits
from llmforge.infer.protocol import Capabilities, Piece, UnknownModel

if TYPE_CHECKING:
    import torch

    from llmforge.data.tokenizer import Tokenizer
    from llmforge.infer.local.reply import Job


class ReadingCore:
    """What a worker's loop and a list of served models ask of a core, where no model writes."""

    adapters = None
    model: Any = None
    context_length = None
    max_rows = 1
    is_idle = True

    def __init__(self, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype):
        self.tokenizer, self.device, self.dtype = tokenizer, device, dtype
        self.template = get_template("empty", tokenizer)
        self.served: dict[str, str] = {}  # the names of models that write
        self.limits = Limits(len(tokenizer), None, frozenset())

    def check(self, job: Job) -> None:
        """Nothing can be written.

        Raises:
            UnknownModel: always.
        """
        raise UnknownModel(job.request.model, [])

    submit = check

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset())

    def stats(self) -> CoreStats:
        return CoreStats(0, 0)

    def step(self) -> list[tuple[Job, Piece]]:
        """Nothing."""
        return []
