"""`forge-cli gateway R`: several workers behind one address."""

from __future__ import annotations

from collections.abc import Sequence

from llmforge.errors import RecipeError
from llmforge.gateway.run import run_gateway
from llmforge.gateway.table import load_table

USAGE = """usage: forge-cli gateway TABLE.yaml [key=value ...]

Several OpenAI-compatible workers behind one address: least-loaded routing, lost workers survived.

example: forge-cli gateway configs/gateway.yaml port=7690
A table is described in docs/gateway.md."""


def main(words: Sequence[str]) -> int:
    """Serve a table of workers until stopped; 0 after a clean end, by signal too."""
    if not words:
        raise RecipeError("gateway: name a table of workers, as configs/gateway.yaml (see forge-cli gateway --help)")
    if words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    run_gateway(load_table(words), words)
    return 0
