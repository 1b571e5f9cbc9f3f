"""`forge-cli webui`: the board in a browser, for the project folder that it is started in. Never imports torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llmforge.config.arguments import Arguments
from llmforge.errors import RecipeError, nearest, require

DEFAULTS = {"host": "127.0.0.1", "port": "7860", "root": "."}
PASSWORD = "FORGE_WEBUI_PASSWORD"


def main(words: Sequence[str]) -> int:
    """Serve the board until Ctrl-C; runs that it started go on without it. Returns the exit code."""
    parser = Arguments(
        prog="forge-cli webui",
        description="The board: fine-tune, watch runs, make and review data, chat, in a browser.",
        epilog=f"example: forge-cli webui port=7860.  For other machines: host=0.0.0.0, and {PASSWORD} set.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="host (127.0.0.1), port (7860; 0: any free one), root (.)"
    )
    given = _values(parser.parse_args(list(words)).words)
    root = Path(given["root"]).resolve()
    if not root.is_dir():
        raise RecipeError(f"webui: root {given['root']} is not a folder")
    if not given["port"].isdigit() or int(given["port"]) > 65535:
        raise RecipeError(f"webui: port: got {given['port']!r}, expected a number from 0 to 65535")
    require("gradio", "webui", "webui")
    from llmforge.webui.server import serve

    serve(root, given["host"], int(given["port"]), os.environ.get(PASSWORD) or None)
    print("forge-cli: the board has ended; runs that it started go on", file=sys.stderr)
    return 0


def _values(words: Sequence[str]) -> dict[str, str]:
    values = dict(DEFAULTS)
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not equals or key not in DEFAULTS:
            raise RecipeError(f"webui: {word!r} is not known.{nearest(key, DEFAULTS)} Known: {', '.join(DEFAULTS)}")
        values[key] = value
    return values
