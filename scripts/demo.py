"""`make demo`: measure a small model, train it on one recipe, measure it again, and show the two side by side.

The steps are forge-cli commands that can be typed by hand; each is printed before it runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORGE = Path(sys.executable).with_name("forge-cli")
RECIPE = "recipes/classify_lora.yaml"
BASE, RUN = "runs/classify_base", "runs/classify"
NEXT = {
    f"chat {RUN} --compare": "talk to the base and the tuned model side by side",
    f"export {RUN}": "merge the adapter into a model folder that any tool reads",
    f"api {RUN} port=8000": "serve both over the OpenAI API",
}


@dataclass(frozen=True)
class Step:
    """One command; `minutes` is what it takes on two CPU cores, from which the time left is told."""

    what: str
    words: str
    minutes: float


STEPS = (
    Step("fetch the model, SmolLM2 with 135 million weights", f"models get {RECIPE}", 0.5),
    Step("measure the base model on 200 reports", f"predict {RECIPE} output_dir={BASE} overwrite_output_dir=true", 0.7),
    Step("train a LoRA adapter on 696 reports", f"train {RECIPE} output_dir={RUN} overwrite_output_dir=true", 4.5),
    Step("measure the tuned model on the same 200 reports", f"predict {RUN} overwrite_output_dir=true", 0.7),
)


def main() -> int:
    """Run the steps and print the table; a failed step's exit code ends the demo."""
    started, pace = time.monotonic(), 1.0  # pace: how much slower this machine is than the minutes above
    for number, step in enumerate(STEPS, 1):
        left = pace * sum(later.minutes for later in STEPS[number - 1 :])
        print(f"\n[{number}/{len(STEPS)}] {step.what} (about {left:.0f} min left in all)", flush=True)
        print(f"      forge-cli {step.words}", flush=True)
        begun = time.monotonic()
        if code := subprocess.run([FORGE, *step.words.split()], cwd=ROOT).returncode:
            print(f"\ndemo: step {number} failed: forge-cli {step.words}", file=sys.stderr)
            return code
        if number > 1:  # the time of a download says nothing about the machine
            pace = (time.monotonic() - begun) / 60 / step.minutes
    show(scores(BASE), scores(RUN), (time.monotonic() - started) / 60)
    return 0


def scores(folder: str) -> dict[str, float]:
    """The scores of a folder's predictions; those of a training run lie in its folder `predict`."""
    files = [ROOT / folder / "predict_results.json", ROOT / folder / "predict" / "predict_results.json"]
    found = json.loads(next(path for path in files if path.exists()).read_text(encoding="utf-8"))
    return {"exact match": found["predict_exact_match"], "valid label": found["predict_label_valid"]}


def show(before: dict[str, float], after: dict[str, float], minutes: float) -> None:
    """Print the table, the places and what to try next."""
    print(f"\n{'200 held-out reports':<22}{'base':>8}{'tuned':>8}{'gain':>8}")
    for name, value in after.items():
        print(f"{name:<22}{before[name]:>8.1%}{value:>8.1%}{value - before[name]:>+8.1%}")
    print(f"\n{minutes:.1f} minutes. Files:")
    print(f"  {RUN}  adapter, resolved recipe, manifest, log, loss plot; its replies in {RUN}/predict")
    print(f"  {BASE}  replies of the base\n\nNext:")
    forge = FORGE.relative_to(ROOT) if FORGE.is_relative_to(ROOT) else FORGE
    for words, what in NEXT.items():
        print(f"  {forge} {words:<32}  # {what}")


if __name__ == "__main__":
    sys.exit(main())
