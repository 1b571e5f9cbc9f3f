"""What is seen of a command from outside: its steps, its time, its memory, and how it ended."""

import os
import sys

import pytest

from llmforge.bench.child import measure

THREE_STEPS = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[1]); out.mkdir()
print("***** Running training *****", flush=True)
for step in (1, 2, 3):
    time.sleep(0.2)
    with open(out / "trainer_log.jsonl", "a") as file:
        file.write(json.dumps({"current_steps": step, "loss": 1 / step}) + "\\n")
with open(out / "trainer_log.jsonl", "a") as file:
    file.write(json.dumps({"current_steps": 3, "train_runtime": 0.6}) + "\\n")
"""


@pytest.fixture
def watch(tmp_path):
    def go(code, num_steps=3, limit_bytes=None):
        (tmp_path / "code.py").write_text(code)
        command = [sys.executable, str(tmp_path / "code.py"), str(tmp_path / "run")]
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        log = tmp_path / "run/trainer_log.jsonl"
        return measure(command, log, tmp_path / "output.txt", env, num_steps, limit_bytes)

    return go


def test_steps_are_timed_as_their_lines_appear_and_the_summary_is_no_step(watch):
    seen = watch(THREE_STEPS)
    assert seen.outcome == "ok", seen.error
    assert [entry["loss"] for entry in seen.log] == [1, 1 / 2, 1 / 3]
    first, second, third = (mark.wall_s for mark in seen.steps)
    assert seen.ready.wall_s < first < second < third <= seen.end.wall_s
    assert second - first >= 0.1
    assert third - first >= 0.3
    assert seen.peak_bytes > 5 * 2**20


def test_cpu_time_at_a_step_counts_what_was_used_until_then(watch):
    busy = "import time, sys\nuntil = time.process_time() + 0.4\nwhile time.process_time() < until: pass\n"
    seen = watch(busy + "print({'loss': '0.5'})\ntime.sleep(0.1)", num_steps=1)
    assert 0.35 <= seen.steps[0].cpu_s <= seen.end.cpu_s + 0.02
    assert seen.steps[0].wall_s >= 0.4


def test_a_command_without_a_log_is_read_by_the_losses_it_prints(watch):
    seen = watch("for x in (2.5, 'nan'): print({'loss': x, 'epoch': 1.0})\n", num_steps=2)
    assert seen.outcome == "ok"
    assert seen.log[0]["loss"] == 2.5
    assert len(seen.steps) == 2


def test_going_over_the_limit_is_out_of_memory_and_ends_the_command(watch):
    seen = watch("import time\nx = bytearray(200 * 2**20)\ntime.sleep(60)", limit_bytes=100 * 2**20)
    assert seen.outcome == "oom"
    assert "limit of 0.10 GB" in seen.error
    assert seen.end.wall_s < 30


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "oom"),
        ('raise SystemExit("load: the machine\'s memory is full. Change one key at a time")', "oom"),
        ("raise MemoryError", "oom"),
        ("raise SystemExit('no such dataset')", "failed"),
        ("print({'loss': 1.0})", "failed"),
    ],
    ids=["killed", "our message", "MemoryError", "another error", "a step is missing"],
)
def test_why_a_command_ended(watch, code, outcome):
    seen = watch(code, num_steps=2)
    assert seen.outcome == outcome
    assert seen.error


def test_a_shell_line_is_watched_with_its_children(tmp_path):
    line = f"{sys.executable} -c \"x = bytearray(80 * 2**20); print({{'loss': 1.0}})\" && true"
    seen = measure(line, tmp_path / "none", tmp_path / "output.txt", os.environ, 1)
    assert seen.outcome == "ok"
    assert seen.peak_bytes > 80 * 2**20
