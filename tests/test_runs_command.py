"""`forge-cli runs` on folders alone; stopping a live run is tested with real ones in tests/train."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from llmforge.errors import RecipeError
from llmforge.process import process_start
from llmforge.runs import RunDir
from llmforge.runs_command import main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """runs/done finished, runs/live runs (this process)."""
    monkeypatch.chdir(tmp_path)
    done = RunDir.create(tmp_path / "runs/done")
    done.write_state(state="finished", step=4, total_steps=4, start_time=1.0)
    done.manifest_path.write_text('{"template": "chatml", "base_model": "tiny"}')
    done.log_path.write_text('{"current_steps": 4, "loss": 1.5}\n')
    (done.path / "checkpoint-4").mkdir()
    live = RunDir.create(tmp_path / "runs/live")
    me = {"pid": os.getpid(), "process_start": process_start(os.getpid()), "host": socket.gethostname()}
    live.write_state(state="running", start_time=2.0, **me)
    return tmp_path / "runs"


def test_list_shows_every_run_and_json_says_the_same(runs, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["running", "finished"]
    assert main(["list", str(runs), "--json"]) == 0
    assert [run["state"] for run in json.loads(capsys.readouterr().out)] == ["running", "finished"]


def test_show_tells_state_origin_and_progress(runs, capsys):
    main(["show", str(runs / "done")])
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert "step 4 of 4" in shown
    assert "base_model: tiny" in shown
    assert "checkpoint-4" in shown
    assert "step 4/-  loss 1.5" in shown
    main(["show", str(runs / "done"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["manifest"]["template"], shown["log"][0]["loss"]) == ("chatml", 1.5)


def test_a_live_run_is_neither_removed_nor_resumed(runs):
    with pytest.raises(RecipeError, match="is running"):
        main(["rm", str(runs / "live"), "--yes"])
    with pytest.raises(RecipeError, match="is running"):
        main(["resume", str(runs / "live")])


def test_a_finished_run_is_resumed_only_to_go_further(runs):
    with pytest.raises(RecipeError, match=r"finished, 4 of 4 steps; .* max_steps=8"):
        main(["resume", str(runs / "done")])


def test_rm_keeps_runs_that_lie_inside_another(runs):
    RunDir(runs / "done/second").make()
    RunDir(runs / "done/second").write_state(state="finished")
    with pytest.raises(RecipeError, match="done/second; remove or move"):
        main(["rm", str(runs / "done"), "--yes"])
    assert (runs / "done/second").is_dir()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["shwo"], "'shwo' is no subcommand. Did you mean 'show'"),
        (["show"], "runs show: the following arguments are required: run"),
        (["stop", "x", "--timeout", "soon"], "runs stop: argument --timeout: invalid float value: 'soon'"),
    ],
)
def test_wrong_words_end_in_one_line(words, told):
    with pytest.raises(RecipeError) as refused:
        main(words)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("action", ["list", "show", "stop", "resume", "rm"])
def test_every_action_has_an_example_to_copy(action, capsys):
    with pytest.raises(SystemExit) as ended:
        main([action, "--help"])
    assert ended.value.code == 0
    assert f"example: forge-cli runs {action}" in capsys.readouterr().out


def test_rm_wants_a_yes(runs):
    with pytest.raises(RecipeError, match=r"1 checkpoint; add --yes"):
        main(["rm", str(runs / "done")])
    assert main(["rm", str(runs / "done"), "--yes"]) == 0
    assert not (runs / "done").exists()


def test_a_run_that_does_not_run_cannot_be_stopped(runs):
    with pytest.raises(RecipeError, match="it is finished"):
        main(["stop", str(runs / "done")])
    with pytest.raises(RecipeError, match="no run here"):
        main(["stop", str(runs)])


def test_runs_needs_no_torch(tmp_path):
    script = (
        "import sys; from llmforge.runs_command import main; main(['list', '.']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
