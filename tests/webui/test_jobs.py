"""Work that outlives the board: forge-cli in a process of its own, with its log and its exit code."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
from llmforge.errors import RecipeError
from llmforge.webui.board import Board
from llmforge.webui.jobs import find_job, start_job
from llmforge.webui.servers import servers, start_server, stop_server

PATIENCE_S = 240


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def ended(board: Board, name: str) -> str:
    until = time.monotonic() + PATIENCE_S
    while (job := find_job(board, name)) and job.state == "running" and time.monotonic() < until:
        time.sleep(0.1)
    assert job
    return job.state


def test_a_job_is_found_again_with_its_end_and_its_log(board: Board) -> None:
    start_job(board, "list", ["runs", "list"])
    assert ended(board, "list") == "done"
    start_job(board, "wrong", ["no-such-command"])
    assert ended(board, "wrong") == "failed"
    job = find_job(board, "wrong")
    assert job
    assert "no-such-command" in job.log()
    assert job.took_s > 0


def test_a_running_job_is_not_started_twice_and_stops_when_told(board: Board) -> None:
    job = start_job(board, "slow", ["webui", "port=0"])  # runs until it is told to end
    with pytest.raises(RecipeError, match="running already"):
        start_job(board, "slow", ["runs", "list"])
    job.stop()
    assert ended(board, "slow") in ("stopped", "done")  # done: it was up already and ended in good order


def test_a_job_that_was_killed_is_lost(board: Board) -> None:
    folder = board.own / "jobs" / "gone"
    folder.mkdir(parents=True)
    about = {"words": ["x"], "pid": 2**22 - 1, "process_start": "0", "started_at": 0.0}
    (folder / "job.json").write_text(json.dumps(about))
    job = find_job(board, "gone")
    assert job
    assert job.state == "lost"


def test_a_server_that_cannot_load_says_why_and_is_put_away(board: Board) -> None:
    server = start_server(board, "no/such-model")
    until = time.monotonic() + PATIENCE_S
    while server.is_alive and time.monotonic() < until:
        time.sleep(0.1)
    assert not server.is_alive
    assert server.models() == []
    assert server.last_words()
    assert [one.target for one in servers(board)] == ["no/such-model"]
    stop_server(server)
    assert servers(board) == []


@pytest.mark.parametrize("target", ["", "../../elsewhere", "/etc"])
def test_only_runs_of_the_project_and_names_of_models_are_loaded(board: Board, target: str) -> None:
    with pytest.raises(RecipeError):
        start_server(board, target)
