"""A link's process: a forge-cli command of its own, so that its memory goes with it; signals are handed on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from llmforge.config.load import SECRETS_FROM
from llmforge.config.schema import Recipe

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_child(words: Sequence[str], recipe: Recipe) -> tuple[int, int]:
    """Run `forge-cli words` to its end.

    Args:
        recipe: secrets that its file gave go into the child's environment; they are written nowhere.

    Returns:
        The exit code, and the signal that we were asked to stop by, 0 for none.
    """
    asked = 0
    child: subprocess.Popen | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        asked = number
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        # A session of its own: a Ctrl-C reaches it once, through us.
        child = subprocess.Popen(
            [sys.executable, "-m", "llmforge.cli", *words],
            env={**os.environ, **_secrets(recipe)},
            start_new_session=True,
        )
        if asked:
            child.send_signal(asked)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (128 - code if code < 0 else code), asked


def _secrets(recipe: Recipe) -> dict[str, str]:
    values = {
        "api_key": recipe.serve.api_key,
        "hf_hub_token": recipe.model.hf_hub_token,
        "ms_hub_token": recipe.model.ms_hub_token,
    }
    return {variable: str(values[key]) for key, variable in SECRETS_FROM.items() if values.get(key)}
