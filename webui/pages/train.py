"""The page train."""

from __future__ import annotations

import gradio as gr

from llmforge.webui.board import Board


def build(board: Board) -> None:
    """What stands on the page."""
    gr.Markdown("-")
