"""Runs that the board starts: processes of their own, one at a time on a device, whose folders say how they ended."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from llmforge.errors import RecipeError
from llmforge.process import process_start
from llmforge.runs import RunDir
from llmforge.webui import launch
from llmforge.webui.board import Board
from llmforge.webui.devices import device_lock, devices
from llmforge.webui.index import Index

BROKEN = "model_name_or_path: nowhere\ndataset: [nothing]\n"  # ends by itself, without torch
PATIENCE_S = 120


@pytest.fixture
def board(tmp_path, monkeypatch) -> Board:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    (tmp_path / "project").mkdir()
    return Board(tmp_path / "project")


def wait(run: RunDir, *states: str) -> str:
    until = time.monotonic() + PATIENCE_S
    while (now := run.read_state().state) not in states:
        assert time.monotonic() < until, f"{run.path.name} stays {now}: {launch.launched(run)}"
        time.sleep(0.05)
    return now


def nothing() -> None:
    """For those who never leave the line."""


def test_a_run_that_fails_at_once_says_why_in_its_folder(board):
    run = launch.start_run(board, "first", BROKEN, ["cpu"])
    assert wait(run, "failed") == "failed"
    assert "nothing" in run.read_state().error
    assert (run.path / "given.yaml").read_text().endswith("output_dir: runs/first\n")
    row = Index(board).run("runs/first")
    assert (row.state, row.data) == ("failed", "nothing")


def test_a_run_waits_for_its_device_and_can_leave_the_line(board):
    with device_lock(["cpu"], 0, nothing):
        waits = launch.start_run(board, "waits", BROKEN, ["cpu"])
        leaves = launch.start_run(board, "leaves", BROKEN, ["cpu"])
        time.sleep(1.5)
        assert [run.read_state().state for run in (waits, leaves)] == ["queued", "queued"]
        with pytest.raises(RecipeError, match="going on already"):
            launch.resume_run(board, waits)
        launch.stop_run(leaves)
        wait(leaves, "stopped")
        assert waits.read_state().state == "queued"
    wait(waits, "failed")
    assert leaves.read_state().state == "stopped"


def test_the_line_outlives_the_board_that_filled_it(board):
    script = (
        "import os, pathlib, sys\n"
        "from llmforge.webui import launch\n"
        "from llmforge.webui.board import Board\n"
        "launch.start_run(Board(pathlib.Path(sys.argv[1])), 'left', sys.argv[2], ['cpu'])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with device_lock(["cpu"], 0, nothing):
        ended = subprocess.run([sys.executable, "-c", script, board.root, BROKEN], check=False)
        assert ended.returncode == -9
        left = RunDir(board.runs / "left")
        time.sleep(1.0)
        assert left.read_state().state == "queued"
    wait(left, "failed")


def test_a_run_keeps_its_device_when_only_its_waiting_process_is_killed(board):
    run = RunDir(board.runs / "endless")
    run.path.mkdir(parents=True)
    launch.begin(board, run, ["cpu"], ["webui", "port=0"])  # a command that does not end by itself
    wait(run, "starting")
    waiter = psutil.Process(launch.launched(run)["pid"])
    while not (children := waiter.children()):
        time.sleep(0.05)
    os.kill(waiter.pid, 9)
    after = launch.start_run(board, "after", BROKEN, ["cpu"])
    time.sleep(1.5)
    assert after.read_state().state == "queued"
    children[0].terminate()
    wait(after, "failed")


def test_a_killed_waiter_does_not_hold_up_the_line(board):
    with device_lock(["cpu"], 0, nothing):
        dead = launch.start_run(board, "dead", BROKEN, ["cpu"])
        after = launch.start_run(board, "after", BROKEN, ["cpu"])
        time.sleep(1.0)
        os.kill(launch.launched(dead)["pid"], 9)
        wait(dead, "lost")
    wait(after, "failed")


def test_places_in_line_go_by_the_moment_of_starting(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    seen = []

    def leave() -> None:
        seen.append("waited")
        raise TimeoutError

    with device_lock(["cpu"], 5, nothing), pytest.raises(TimeoutError), device_lock(["cpu"], 4, leave):
        pass
    assert seen == ["waited"]
    with device_lock(["cpu", "cuda:0"], 6, nothing) as held:
        assert len(held) == 2


def test_a_run_of_the_board_is_killed_at_once_and_told_so(board):
    run = RunDir(board.runs / "endless")
    run.path.mkdir(parents=True)
    launch.begin(board, run, ["cpu"], ["webui", "port=0"])  # a command that does not end by itself
    wait(run, "starting")
    launch.kill_run(run)
    wait(run, "stopped")
    assert run.read_state().error == launch.KILLED


def test_a_run_of_the_command_line_is_killed_with_its_children(board):
    run = RunDir(board.runs / "theirs")
    run.path.mkdir(parents=True)
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    who = {"pid": process.pid, "process_start": process_start(process.pid), "host": socket.gethostname()}
    run.write_state(state="running", phase="train", **who)
    launch.kill_run(run)
    process.communicate()
    assert run.read_state().state == "stopped"
    assert "killed" in run.read_state().error
    assert process_start(child) is None
    with pytest.raises(RecipeError, match="does not run"):
        launch.kill_run(run)


def test_names_of_runs_are_names_and_taken_ones_are_refused(board):
    for name in ("", "../x", "a/b", ".hidden", "a b", "x" * 81):
        with pytest.raises(RecipeError, match="A run's name"):
            launch.start_run(board, name, BROKEN, ["cpu"])
    (board.runs / "燕尾").mkdir(parents=True)
    with pytest.raises(RecipeError, match="is there already"):
        launch.start_run(board, "燕尾", BROKEN, ["cpu"])
    assert launch.free_name(board, "燕尾") == "燕尾-2"


def test_a_run_is_deleted_only_when_its_name_is_typed(board):
    run = RunDir(board.runs / "old")
    run.path.mkdir(parents=True)
    run.write_state(state="finished")
    with pytest.raises(RecipeError, match="Type the name old"):
        launch.delete_run(board, run, "runs/old")
    launch.delete_run(board, run, " old ")
    assert not run.path.exists()


def test_keys_are_set_in_a_recipe_without_touching_its_other_lines():
    text = "# mine\nlr: 1\ndataset:\n  - a\n  - b\noutput_dir: x  # here\n"
    assert launch.with_key(text, "dataset", "c") == "# mine\nlr: 1\ndataset: c\noutput_dir: x  # here\n"
    assert launch.with_key(text, "device", "cpu").endswith("device: cpu\n")


def test_the_index_is_rebuilt_from_the_folders_and_survives_damage(board):
    for number in range(3):
        run = RunDir(board.runs / f"r{number}")
        run.path.mkdir(parents=True)
        run.write_state(state="finished", start_time=float(number + 1), step=5, total_steps=5)
        run.log_path.write_text(json.dumps({"current_steps": 1, "eval_loss": 2.0 - number}) + "\n")
    names = [row.name for row in Index(board).runs()]
    assert names == ["runs/r2", "runs/r1", "runs/r0"]
    again = Index(board)
    assert again.path.is_file()
    assert [row.best_eval for row in again.runs()] == [0.0, 1.0, 2.0]
    again.path.write_bytes(b"not a database at all" * 100)
    assert [row.name for row in Index(board).runs()] == names
    again.path.unlink()
    launch.delete_run(board, RunDir(board.runs / "r1"), "r1")
    assert [row.name for row in Index(board).runs()] == ["runs/r2", "runs/r0"]


def test_a_live_run_whose_process_is_gone_is_lost_at_the_next_look(board):
    run = RunDir(board.runs / "gone")
    run.path.mkdir(parents=True)
    run.write_state(state="running", pid=2**22 + 1, process_start="x", host=socket.gethostname())
    assert Index(board).run("runs/gone").state == "lost"


def test_the_processor_is_always_a_device():
    first = devices()[0]
    assert first.name == "cpu"
    assert 0 < first.free <= first.total
