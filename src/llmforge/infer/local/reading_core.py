"""The core of an engine whose models only read: it has nothing to step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmforge.infer.local.encoder_files import load_encoder_text
from llmforge.infer.local.intake import Limits
from llmforge.infer.local.messages import CoreStats
from llmforge.infer.protocol import Capabilities, Piece, UnknownModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from llmforge.infer.local.reply import Job


class ReadingCore:
    """What a worker's loop and a list of served models ask of a core, where no model writes."""

    adapters = None
    model: Any = None
    context_length = None
    max_rows = 1
    is_idle = True

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.tokenizer, self.template = load_encoder_text(folder)
        self.device, self.dtype = device, dtype
        self.served: dict[str, str] = {}  # the names of models that write
        self.limits = Limits(len(self.tokenizer), None, frozenset())

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
