"""The board's server: one address, one process; runs live in processes of their own."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

# Before gradio is imported: it would ask its home for news and look for other fonts.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import uvicorn

from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.guard import check_bind


def serve(root: Path, host: str, port: int, password: str | None) -> None:
    """Serve the board of the project `root` until the process is told to end.

    Raises:
        RecipeError: the address is taken, or reachable from elsewhere without a password.
    """
    check_bind(host, password)
    listener = _listen(host, port)
    os.chdir(root)  # recipes and commands name paths from the project folder
    board = Board(root)
    board.own.mkdir(exist_ok=True)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(board.own / "sent"))
    from llmforge.webui.app import create_app

    app = create_app(board, password)
    shown = f"[{host}]" if ":" in host else host
    print(
        f"forge-cli: the board of {root} is at http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True
    )
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RecipeError(
            f"webui: {host}:{port} cannot be listened on ({error.strerror}); give another port="
        ) from None
    return listener
