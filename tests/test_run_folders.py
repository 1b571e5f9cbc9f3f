"""Run folders: files are whole or absent, one live run per folder, a dead one is told from a live one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from llmforge.errors import RecipeError, RunError
from llmforge.process import is_running, process_start
from llmforge.runs import RunDir, atomic_dir, atomic_write, list_runs, read_manifest


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir.create(tmp_path / "run")


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def running_state(**changes):
    me = {"pid": os.getpid(), "process_start": process_start(os.getpid()), "host": socket.gethostname()}
    return {"state": "running", **me, **changes}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    atomic_write(path, "旧")
    with pytest.raises(TypeError):
        atomic_write(path, 3)
    assert path.read_text(encoding="utf-8") == "旧"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_folder_appears_when_everything_is_in_it(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_dir(tmp_path / "out") as folder:
        (folder / "no such folder" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with atomic_dir(tmp_path / "out") as folder:
            (folder / "file").write_text(text)
            assert (tmp_path / "out").exists() == (text == "two")
    assert (tmp_path / "out/file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_live_run_keeps_its_folder(run):
    with run.lock() as notice:
        assert notice is None
        script = "import sys; from llmforge.runs import RunDir\nwith RunDir(sys.argv[1]).lock(): pass"
        other = subprocess.run([sys.executable, "-c", script, run.path], capture_output=True, text=True, check=False)
        assert f"is in use by process {os.getpid()}" in other.stderr
    with run.lock() as notice:
        assert notice is None


def test_the_lock_of_a_dead_process_is_taken_over_with_a_notice(run, gone):
    holder = {"pid": gone, "process_start": "boot:1", "host": socket.gethostname()}
    run.lock_path.write_text(json.dumps(holder))
    with run.lock() as notice:
        assert notice == f"took over the lock of process {gone}, which is gone"


def test_a_recycled_process_id_is_not_taken_for_the_holder(run):
    holder = {"pid": os.getppid(), "process_start": "another boot:1", "host": socket.gethostname()}
    run.lock_path.write_text(json.dumps(holder))
    with run.lock() as notice:
        assert "gone" in notice
    assert is_running(os.getppid(), process_start(os.getppid()))
    assert not is_running(os.getppid(), "another boot:1")


def test_a_lock_from_another_machine_is_not_judged(run):
    run.lock_path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(RunError, match=r"process 1 on elsewhere[\s\S]*delete"), run.lock():
        pass


def test_a_run_whose_process_is_gone_is_lost(run, gone):
    run.write_state(**running_state())
    assert run.read_state().live
    run.write_state(pid=gone)
    state = run.read_state()
    assert (state.state, state.live, state.more["last_state"]) == ("lost", False, "running")


def test_heartbeats_do_not_undo_what_the_run_writes(run):
    run.write_state(state="running", step=0)
    beats = [threading.Thread(target=lambda: [run.heartbeat() for _ in range(50)]) for _ in range(3)]
    for thread in beats:
        thread.start()
    for step in range(50):
        run.write_state(step=step)
    for thread in beats:
        thread.join()
    assert json.loads(run.state_path.read_text())["step"] == 49


def test_results_are_not_thrown_away_unasked(run):
    (run.path / "checkpoint-5").mkdir()
    (run.path / "adapter_model.safetensors").write_bytes(b"w")
    (run.path / "my notes.txt").write_text("keep")
    with pytest.raises(RecipeError, match=r"checkpoint-5, adapter_model[\s\S]*overwrite_output_dir=true"):
        RunDir.create(run.path)
    RunDir.create(run.path, overwrite=True)
    assert [p.name for p in run.path.iterdir()] == ["my notes.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="output_dir"):
        RunDir.create(tmp_path / "file" / "run")


def test_a_checkpoint_shares_its_run_s_manifest(run):
    (run.path / "checkpoint-5").mkdir()
    assert read_manifest(run.path) is None
    run.manifest_path.write_text('{"template": "chatml"}')
    assert read_manifest(run.path / "checkpoint-5") == {"template": "chatml"}
    run.manifest_path.write_text("[]")
    with pytest.raises(RecipeError, match="expected a JSON object"):
        read_manifest(run.path)


def test_runs_are_found_below_a_folder_the_newest_first(tmp_path):
    for number, name in enumerate(("old", "llama/lora/sft", "broken")):
        RunDir.create(tmp_path / name).write_state(state="finished", start_time=1 + number)
    (tmp_path / "broken/run.json").write_text("{")
    states = list_runs(tmp_path)
    assert [state.path.relative_to(tmp_path).as_posix() for state in states] == ["llama/lora/sft", "old", "broken"]
    assert "not valid JSON" in states[-1].error
