"""Errors a user can cause, and the words they end with.

`RecipeError` is for what a user wrote (exit 2), `RunError` for a run that could not go on (exit 1). The command line
prints their message alone; every other exception is ours to fix and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ForgeError(Exception):
    """An error whose message is written for the user; `exit_code` is what the process ends with."""

    exit_code = 1


class RunError(ForgeError):
    """A run that started and could not go on; the message names the step and the cause."""


class RecipeError(ForgeError):
    """Wrong input: a recipe, a data file, an argument, or a missing extra."""

    exit_code = 2


class GateError(ForgeError):
    """A budget, a gate or too many rejected rows stopped the work."""

    exit_code = 3


def nearest(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the known name closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(str(name).lower(), names := list(known), n=1, cutoff=0.6)
    if not close:
        lowered = {n.lower(): n for n in names}
        close = [lowered[c] for c in difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.6)]
    return f" Did you mean {close[0]!r}?" if close else ""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say in one line what to install.

    Raises:
        RecipeError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name != module.split(".")[0]:
            raise
        raise RecipeError(f"{purpose} needs the package {module!r}: pip install 'llmforge[{extra}]'") from None
