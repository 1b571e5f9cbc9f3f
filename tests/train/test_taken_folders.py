"""Folders a training may not start in, refused before torch is read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmforge.runs import RunDir

SCRIPT = "import sys; from llmforge.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"


def started(words):
    """What `train` says on stderr, and whether it came as far as torch, with its exit code."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, "train", *words], capture_output=True, text=True)
    return done.stderr.splitlines()[-4:], done.stdout.strip()


def test_results_are_not_trained_over(words, tmp_path):
    folder = RunDir(tmp_path / "run")
    (folder.path / "checkpoint-3").mkdir(parents=True)
    said, ended = started(words())
    assert ended == "False 2"
    assert "holds a run already (checkpoint-3). Choose one:" in said[0]
    assert [line.split()[0] for line in said[1:]] == [
        "resume_from_checkpoint=true", "overwrite_output_dir=true", "output_dir=ANOTHER",
    ]  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"resume_from_checkpoint": True}, {"overwrite_output_dir": True}])
def test_a_folder_in_use_is_left_alone(words, tmp_path, more):
    folder = RunDir(tmp_path / "run")
    folder.make()
    with folder.lock():
        said, ended = started(words(**more))
    assert ended == "False 1"
    assert "is in use by process" in said[-1]
