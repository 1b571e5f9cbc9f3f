"""Trackers by their Hugging Face names, each behind a guard: one that fails is switched off, the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from llmforge.errors import RecipeError


class GuardedTracker(TrainerCallback):
    """Passes every event on to a tracker until one fails."""

    def __init__(self, name: str, inner: TrainerCallback, say: Callable[[str], None]):
        self.name, self.inner, self.say, self.broken = name, inner, say, False

    def pass_on(self, event: str, *args: Any, **kwargs: Any) -> None:
        if self.broken:
            return
        try:
            getattr(self.inner, event)(*args, **kwargs)
        except Exception as error:
            self.broken = True
            self.say(f"tracker {self.name} failed and is switched off: {type(error).__name__}: {error}")


def _event(name: str) -> Callable[..., None]:
    def handle(self: GuardedTracker, *args: Any, **kwargs: Any) -> None:
        self.pass_on(name, *args, **kwargs)

    return handle


for _name in [name for name in dir(TrainerCallback) if name.startswith("on_")]:
    setattr(GuardedTracker, _name, _event(_name))


def trackers(names: list[str], say: Callable[[str], None]) -> list[GuardedTracker]:
    """Callbacks for `report_to`.

    Raises:
        RecipeError: an unknown name, or a package that is not installed.
    """
    found = []
    for name in names:
        if name == "none":
            continue
        try:
            found += [GuardedTracker(name, make(), say) for make in get_reporting_integration_callbacks([name])]
        except ValueError as error:
            raise RecipeError(f"report_to: {error}") from None
        except (RuntimeError, ImportError) as error:
            raise RecipeError(
                f"report_to: {name} cannot be used: {str(error).rstrip('. ')}. Install it, or set report_to: none"
            ) from None
    return found
