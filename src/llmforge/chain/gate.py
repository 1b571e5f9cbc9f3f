"""A gate: the metrics of an earlier link against bars; a chain ends there when one is not reached."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import GateError, RecipeError, nearest

SIGNS = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__, "<": float.__lt__}
BAR = re.compile(r"\s*(>=|<=|>|<)?\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
LOWER_IS_BETTER = re.compile(r"(^|_)(loss|kl|perplexity|runtime)($|_)")
RESULTS = ("train_results.json", "predict_results.json")
PREFIXES = ("", "predict_", "eval_", "train_")  # exact_match stands for predict_exact_match


@dataclass(frozen=True)
class Bar:
    """What one metric must reach."""

    metric: str
    sign: str
    value: float

    @classmethod
    def read(cls, metric: str, said: Any) -> Bar:
        """A bar as a recipe says it: 0.8 (at least) or "<= 1.5".

        Raises:
            RecipeError: neither of the two; or a bare number for a metric where less is better.
        """
        match = BAR.fullmatch(str(said)) if not isinstance(said, bool) else None
        if match is None:
            raise RecipeError(f"{metric}: got {said!r}, expected a number or a bar such as '<= 1.5'")
        if match[1] is None and LOWER_IS_BETTER.search(metric):
            raise RecipeError(f"{metric}: {said} alone means at least, and less of it is better; write '<= {said}'")
        return cls(metric, match[1] or ">=", float(match[2]))

    def holds(self, value: float) -> bool:
        return bool(SIGNS[self.sign](float(value), self.value))

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.value:g}"


def metrics_of(folder: Path) -> dict[str, float]:
    """The numbers a link left behind: the last of its log, over them the results of training and prediction."""
    found: dict[str, Any] = {}
    log = folder / "trainer_log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        found |= json.loads(line)
    for name in RESULTS:
        if (folder / name).is_file():
            found |= json.loads((folder / name).read_text(encoding="utf-8"))
    return {name: float(value) for name, value in found.items() if type(value) in (int, float)}


def look_up(metric: str, found: dict[str, float]) -> float | None:
    """A metric's value by its name, with or without the prefix that files give it."""
    return next((found[prefix + metric] for prefix in PREFIXES if prefix + metric in found), None)


def pass_gate(name: str, of: str, folder: Path, bars: tuple[Bar, ...]) -> list[str]:
    """A line for each bar that was reached.

    Raises:
        RecipeError: the link has no such metric.
        GateError: a metric is below its bar, or no number; all of them are named.
    """
    found = metrics_of(folder)
    missed: list[str] = []
    reached: list[str] = []
    for bar in bars:
        value = look_up(bar.metric, found)
        if value is None:
            known = ", ".join(sorted(found))
            raise RecipeError(
                f"link {name}: {of} has no metric {bar.metric!r}.{nearest(bar.metric, found)} Known: {known}"
            )
        said = f"{bar.metric} of {of} is {value:.6g}, the bar is {bar.sign} {bar.value:g}"
        (reached if not math.isnan(value) and bar.holds(value) else missed).append(said)
    if missed:
        raise GateError(f"link {name}: {'; '.join(missed)}. The chain ends here; {folder} holds the results")
    return reached
