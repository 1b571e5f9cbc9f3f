"""Exports of the board: jobs whose state stands at their run."""

import time
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
from llmforge.errors import RecipeError
from llmforge.runs import RunDir
from llmforge.webui import launch
from llmforge.webui.board import Board
from llmforge.webui.exporting import is_exporting, show_export, start_export
from llmforge.webui.jobs import start_job
from llmforge.webui.words import Words

PATIENCE_S = 240
EN, ZH = Words("en"), Words("zh")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs/empty")
    run.path.mkdir(parents=True)
    run.write_state(state="finished", start_time=time.time())
    return run


def ended(board: Board, run: RunDir) -> None:
    until = time.monotonic() + PATIENCE_S
    while is_exporting(board, run):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_an_export_that_fails_says_why_until_the_run_is_trained_again(tmp_path: Path, run: RunDir) -> None:
    board = Board(tmp_path)
    assert show_export(EN, board, run) is None
    start_export(board, run)
    ended(board, run)
    shown = show_export(EN, board, run)
    assert shown
    assert "The export failed." in shown
    assert "runs/empty" in shown
    assert "导出失败。" in (show_export(ZH, board, run) or "")
    run.write_state(start_time=time.time())
    assert show_export(EN, board, run) is None


def test_a_run_that_is_exported_is_neither_exported_twice_nor_deleted(tmp_path: Path, run: RunDir) -> None:
    board = Board(tmp_path)
    job = start_job(board, "export-runs/empty", ["webui", "port=0"])  # goes on until it is told to end
    try:
        assert "Is being exported:" in (show_export(EN, board, run) or "")
        with pytest.raises(RecipeError):
            start_export(board, run)
        with pytest.raises(RecipeError, match="being exported"):
            launch.delete_run(board, run, "empty")
    finally:
        job.stop()
        ended(board, run)
    assert run.path.is_dir()
