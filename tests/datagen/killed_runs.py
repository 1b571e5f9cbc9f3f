"""Start `generate` again and again in forked processes and kill each with SIGKILL at a random moment; then let it end.

python killed_runs.py RECIPE WORK KILLS SEED LONGEST_S   prints {"hit": kills that met a living process, "lost": rows}
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import openai  # noqa: F401  # imported before the forks, so that each child starts at once

from llmforge.datagen.generate import generate
from llmforge.datagen.recipe import load_dataset_recipe


def accepted(work: Path) -> dict[str, str]:
    """Rows the ledger calls accepted."""
    path = work / "ledger.jsonl"
    text = path.read_text() if path.is_file() else ""
    entries = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {e["id"]: json.dumps(e["record"]) for e in entries if e["t"] == "end" and e["cause"] is None}


def run(words: list[str]) -> None:
    generate(load_dataset_recipe(words))


def main(recipe: str, work: Path, kills: int, seed: int, longest_s: float) -> dict[str, int]:
    draw, hit, lost, before = random.Random(seed), 0, 0, {}
    words = [recipe, f"store.dir={work}"]
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # the process ends with it
            run(words)
            os._exit(0)
        time.sleep(draw.uniform(0.0, longest_s))
        os.kill(child, signal.SIGKILL)
        hit += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        now = accepted(work)
        lost += sum(now.get(id) != record for id, record in before.items())
        before = now
    run(words)
    lost += sum(accepted(work).get(id) != record for id, record in before.items())
    return {"hit": hit, "lost": lost}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
