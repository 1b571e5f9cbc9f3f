"""Runs killed with SIGKILL, by the disk or by the user: nothing accepted is lost, and little is paid twice."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scripted_teacher import Script, serving

from llmforge.datagen.generate import generate
from llmforge.datagen.ledger import Ledger
from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.errors import RunError

pytest.importorskip("openai")
WORKERS = 4
SCHEMA = {
    "type": "object",
    "properties": {"report": {"type": "string", "minLength": 3}, "code": {"type": "string"}},
    "required": ["report", "code"],
    "additionalProperties": False,
}
RECIPE = """\
kind: dataset
name: kills
slots:
  id: {uuid: 4}
  symbol: {table: symbols.csv, pick: quota, per_value: PER_VALUE}
prompt: ask.j2
output_schema: answer.json
facts: {code: symbol.code}
row: {instruction: Report., input: "{{ out.report }}", output: out.code}
dedupe: {field: input, method: rouge_l, max: 0.9}
teacher: {base_url: URL, model: m, parallel: 4, retries: 2, patience_s: 30}
max_rejected: 1.0
"""


def write(folder: Path, url: str, per_value: int) -> Path:
    (folder / "symbols.csv").write_text("code\n" + "".join(f"S{i}\n" for i in range(12)))
    (folder / "ask.j2").write_text("Report {{ symbol.code }} for row {{ id }}.")
    (folder / "answer.json").write_text(json.dumps(SCHEMA))
    (folder / "kills.yaml").write_text(RECIPE.replace("URL", url).replace("PER_VALUE", str(per_value)))
    return folder / "kills.yaml"


def files(folder: Path) -> dict[str, bytes]:
    return {f"{kind}/{p.name}": p.read_bytes() for kind in ("ok", "rejected") for p in (folder / kind).glob("*.json")}


def killed(recipe: Path, work: Path, kills: int, longest_s: float) -> dict[str, int]:
    script = Path(__file__).with_name("killed_runs.py")
    words = [sys.executable, str(script), str(recipe), str(work), str(kills), "1", str(longest_s)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compare_with_unbroken_run(tmp_path: Path, per_value: int, kills: int, longest_s: float, latency_s: float) -> int:
    """Kill a run, compare its files with those of a run left alone; returns how many kills met a living process."""
    with serving(Script(bad=0.2, words=30)) as teacher:
        recipe = write(tmp_path, teacher.url, per_value)
        whole = generate(load_dataset_recipe([str(recipe), f"store.dir={tmp_path / 'whole'}"]))
        asked_once = Counter(entry["key"] for entry in teacher.script.requests)
    with serving(Script(bad=0.2, words=30, latency_s=latency_s)) as teacher:
        recipe = write(tmp_path, teacher.url, per_value)
        counted = killed(recipe, tmp_path / "broken", kills, longest_s)
        asked = Counter(entry["key"] for entry in teacher.script.requests)
    assert counted["lost"] == 0
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    assert asked.keys() == asked_once.keys()
    again = (asked - asked_once).total()
    assert again <= counted["hit"] * WORKERS  # only what was under way at a kill
    assert whole.counts["accepted"] >= 0.7 * whole.counts["rows"]
    ledger = Ledger(tmp_path / "broken" / "ledger.jsonl")
    ledger.close()
    counted_as_paid = ledger.history.spent.requests  # those under way at a kill too, arrived or not
    assert asked.total() <= counted_as_paid <= asked.total() + counted["hit"] * WORKERS
    return counted["hit"]


def test_five_kills_leave_the_same_rows(tmp_path):
    assert compare_with_unbroken_run(tmp_path, per_value=3, kills=5, longest_s=0.7, latency_s=0.1) >= 4


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path):
    assert compare_with_unbroken_run(tmp_path, per_value=50, kills=200, longest_s=1.5, latency_s=0.3) >= 190


def test_a_torn_last_line_and_missing_files_are_mended(tmp_path):
    with serving(Script()) as teacher:
        recipe = load_dataset_recipe([str(write(tmp_path, teacher.url, 1)), f"store.dir={tmp_path / 'work'}"])
        generate(recipe)
        before, asked = files(tmp_path / "work"), len(teacher.script.requests)
        for path in sorted((tmp_path / "work/ok").glob("*.json"))[:3]:
            path.unlink()
        with open(tmp_path / "work/ledger.jsonl", "a") as file:
            file.write('{"t": "end", "id": "half a li')
        generate(recipe)
        assert files(tmp_path / "work") == before
        assert len(teacher.script.requests) == asked


def test_two_processes_do_not_share_a_folder(tmp_path):
    with serving(Script()) as teacher:
        recipe = load_dataset_recipe([str(write(tmp_path, teacher.url, 1)), f"store.dir={tmp_path / 'work'}"])
        ledger = Ledger(tmp_path / "work/ledger.jsonl")
        with pytest.raises(RunError, match="another process is generating here"):
            generate(recipe)
        ledger.close()
        generate(recipe)


def test_a_full_disk_ends_the_run_with_its_rows_safe(tmp_path):
    with serving(Script()) as teacher:
        recipe = write(tmp_path, teacher.url, 2)
        words = [
            sys.executable,
            "-m",
            "llmforge.cli",
            "data",
            "generate",
            str(recipe),
            f"store.dir={tmp_path / 'work'}",
        ]
        limit = 12_000  # bytes a file may have: the ledger reaches them in the middle of the run
        small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        done = subprocess.run(words, capture_output=True, text=True, preexec_fn=small, check=False, timeout=120)
        assert done.returncode == 1
        assert "what is in it so far is safe" in done.stderr
        assert "Traceback" not in done.stderr
        kept = len(list((tmp_path / "work/ok").glob("*.json")))
        assert 0 < kept < 24
        asked = len(teacher.script.requests)
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert "24 rows" in done.stdout
        assert len(teacher.script.requests) <= asked + 24 - kept + WORKERS
