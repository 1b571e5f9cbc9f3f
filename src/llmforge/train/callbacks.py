"""What happens beside the steps: the log file, the progress line, run.json, alarms."""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmforge.runs import RunDir
from llmforge.train.alarms import Alarms
from llmforge.train.console import Console, bar, clock
from llmforge.train.meter import Meter


class Pace:
    """Time gone and time left, counted from the first step of this process (a resumed run starts in the middle)."""

    def __init__(self) -> None:
        self.started_at, self.first_step = time.monotonic(), 0

    def start(self, step: int) -> None:
        self.started_at, self.first_step = time.monotonic(), step

    def times(self, step: int, total: int) -> tuple[float, float]:
        """(seconds gone, seconds left)."""
        gone = time.monotonic() - self.started_at
        done = step - self.first_step
        return gone, gone / done * (total - step) if done else 0.0


class JsonlLog(TrainerCallback):
    """trainer_log.jsonl with LLaMA-Factory's keys, and ours behind them. A resumed run cuts off what came later."""

    def __init__(self, run: RunDir, pace: Pace):
        self.run, self.pace = run, pace

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.pace.start(state.global_step)
        if not state.is_world_process_zero or not self.run.log_path.exists():
            return
        lines = self.run.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [
            line for line in lines if line.endswith("\n") and json.loads(line)["current_steps"] <= state.global_step
        ]
        self.run.log_path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any) -> None:
        logs = about["logs"]
        if not state.is_world_process_zero or not any(key == "loss" or key.startswith("eval_") for key in logs):
            return
        gone, left = self.pace.times(state.global_step, state.max_steps)
        line: dict[str, Any] = {"current_steps": state.global_step, "total_steps": state.max_steps}
        line |= {"lr" if key == "learning_rate" else key: _finite(value) for key, value in logs.items()}
        line |= {
            "epoch": round(state.epoch or 0.0, 4),
            "percentage": round(100 * state.global_step / max(state.max_steps, 1), 2),
            "elapsed_time": str(timedelta(seconds=int(gone))),
            "remaining_time": str(timedelta(seconds=int(left))),
        }
        with open(self.run.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ProgressLine(TrainerCallback):
    """The progress line, and the same in run.json for `forge-cli runs` and the board."""

    def __init__(self, run: RunDir, console: Console, pace: Pace, meter: Meter):
        self.run, self.console, self.pace, self.meter = run, console, pace, meter
        self._written_at = 0.0

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any) -> None:
        logs = about["logs"]
        if any(key.startswith("eval_") for key in logs):
            hidden = ("epoch", "eval_runtime")
            scores = [f"{k} {v:.4g}" for k, v in logs.items() if k not in hidden and isinstance(v, (int, float))]
            self.console.say(f"eval  step {state.global_step}  " + "  ".join(scores))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        done, total = state.global_step, state.max_steps
        gone, left = self.pace.times(done, total)
        loss = self.meter.last_loss
        speed = self.meter.total_tokens / max(gone, 1e-9)
        text = f"train {done}/{total} {bar(done, total)} loss {loss:.4g}  {speed:.0f} tokens/s  {clock(left)} left"
        self.console.live(text, last=done == total or done == self.pace.first_step + 1)
        now = time.monotonic()
        if state.is_world_process_zero and (now - self._written_at > 1.0 or done == total):
            self._written_at = now
            self.run.write_state(
                phase="train", step=done, total_steps=total, loss=_finite(loss), remaining_s=round(left)
            )


class Watch(TrainerCallback):
    """Says the alarms, and keeps them in run.json."""

    def __init__(self, run: RunDir, console: Console, meter: Meter):
        self.run, self.console, self.meter, self.alarms = run, console, meter, Alarms()
        self.said: list[str] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.meter.last_norm is not None:
            self.say(state, self.alarms.norm(state.global_step, self.meter.last_norm))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any) -> None:
        logs = about["logs"]
        if "loss" in logs:
            self.say(state, self.alarms.loss(state.global_step, logs["loss"]))

    def say(self, state: TrainerState, text: str | None) -> None:
        """Say an alarm and keep it in run.json."""
        if text is None or not state.is_world_process_zero:
            return
        self.console.say(f"alarm: {text}")
        self.said = [*self.said[-19:], text]
        self.run.write_state(alarms=self.said)
