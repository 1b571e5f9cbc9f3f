"""What stands under an engine: workers, and what is known of the models they serve."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llmforge.infer.local.intake import Intake
from llmforge.infer.protocol import Capabilities, ModelCard

if TYPE_CHECKING:
    from llmforge.infer.local.served import ServedModels


class Worker(Protocol):
    """A core somewhere, which takes messages and gives messages."""

    max_rows: int  # replies it decodes together

    def start(self, hear: Callable[[Any], None]) -> None: ...
    def send(self, message: Any) -> None: ...


@runtime_checkable
class Fleet(Protocol):
    """Workers that serve the same models."""

    intake: Intake
    cards: MutableMapping[str, ModelCard]
    capabilities: Capabilities
    workers: Sequence[Worker]
    together: int  # so many rows are done sooner by one worker alone than by several

    def prepare(self) -> None:
        """Bring the workers into being; may take seconds."""
        ...

    def revive(self, number: int) -> Worker | None:
        """A new worker in the place of one that died; None when there can be none."""
        ...

    def remember(self, method: str, *args: Any) -> None:
        """Call a method of the ServedModels that workers made from now on begin with."""
        ...

    def stop(self) -> None:
        """End them."""
        ...


class ThreadFleet:
    """One worker, in a thread of this process."""

    together = 0

    def __init__(self, served: ServedModels):
        from llmforge.infer.local.thread_worker import ThreadWorker

        core = served.core
        self.intake = Intake(core.tokenizer, core.template, core.limits, dict(served.table))
        self.cards = {card.id: card for card in served.cards}
        self.capabilities = served.capabilities()
        self.workers = [ThreadWorker(served)]

    def prepare(self) -> None:
        """Nothing: the model is loaded."""

    def revive(self, number: int) -> None:
        """There is one core, and it failed."""

    def remember(self, method: str, *args: Any) -> None:
        """Nothing: there will be no other worker."""

    def stop(self) -> None:
        self.workers[0].stop()
