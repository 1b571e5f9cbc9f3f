"""What the requests of one load say: rates, percentiles, Little's law, the knee. Times in seconds, all of the client.

The rules: TPq is the nearest rank, element ceil(q n) of the sorted latencies; TP999 needs 1,000 of them. By Little's
law the requests in flight are throughput x mean latency; a closed loop that had 10 % fewer than it has clients was held
up by the load generator. The knee is the last step at which the throughput still grew by 5 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PERCENTILES = (("tp50", 500), ("tp90", 900), ("tp99", 990), ("tp999", 999))
TP999_NEEDS = 1000
LITTLE_TOLERANCE = 0.10
KNEE_GROWTH = 0.05


@dataclass
class Sample:
    """One request as the client saw it; moments count from the start of the load."""

    due: float  # when it should have gone out: an open loop's plan, in a closed loop the moment it did
    end: float
    first: float | None = None  # the first text
    num_tokens: int = 0  # of the reply
    prompt_tokens: int = 0
    gaps: list[float] = field(default_factory=list)  # between pieces of text
    error: str = ""  # "" or its kind: "429", "timeout", "connection", "cut", "stream"
    detail: str = ""

    @property
    def latency(self) -> float:
        return self.end - self.due


def nearest_rank(values: Sequence[float], permille: int) -> float:
    """Element ceil(q n), counted from 1, of the sorted values; q in thousandths, so that no rounding moves the rank."""
    return sorted(values)[-(-len(values) * permille // 1000) - 1]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """tp50, tp90, tp99, the maximum, and tp999 where there are enough values."""
    if not values:
        return {}
    found = {name: nearest_rank(values, q) for name, q in PERCENTILES if name != "tp999" or len(values) >= TP999_NEEDS}
    return found | {"max": max(values)}


def mean_in_flight(samples: Sequence[Sample], until: float) -> float:
    """Requests under way on average from 0 to `until`, which by Little's law is throughput x mean latency there."""
    if until <= 0:
        return 0.0
    return sum(max(0.0, min(sample.end, until) - sample.due) for sample in samples if sample.due < until) / until


def little_holds(concurrency: float, in_flight: float) -> bool:
    """Whether a closed loop kept its clients busy; when not, the load generator is what was measured."""
    return abs(in_flight / concurrency - 1) <= LITTLE_TOLERANCE


def knee(steps: Sequence[tuple[float, float]]) -> float | None:
    """The last concurrency at which the throughput grew by 5 % or more; None below two steps.

    Args:
        steps: (concurrency, requests per second).
    """
    ordered = sorted(steps)
    if len(ordered) < 2:
        return None
    found = ordered[0][0]
    for (_, before), (load, after) in pairwise(ordered):
        if after >= before * (1 + KNEE_GROWTH):
            found = load
    return found


def summarise(samples: Sequence[Sample], concurrency: int | None) -> dict[str, Any]:
    """One ledger line's worth of a load.

    Args:
        samples: every request, failed ones too; they count in `errors` and nowhere else.
        concurrency: of a closed loop; None for an open one.
    """
    good = [sample for sample in samples if not sample.error]
    wall = max(sample.end for sample in samples)
    refused = [sample.latency for sample in samples if sample.error == "429"]
    line: dict[str, Any] = {
        "num_requests": len(samples), "num_good": len(good), "wall_s": wall,
        "errors": dict(Counter(sample.error for sample in samples if sample.error)),
        "req_per_s": len(good) / wall, "tokens_per_s": sum(sample.num_tokens for sample in good) / wall,
        "latencies_s": [round(value, 4) for value in sorted(sample.latency for sample in good)],
        "first_s": [round(s.first - s.due, 4) for s in good if s.first is not None],
    }  # fmt: skip
    if good:
        line["tokens_per_reply"] = sum(sample.num_tokens for sample in good) / len(good)
        line["tokens_per_prompt"] = sum(sample.prompt_tokens for sample in good) / len(good)
        line["gap"] = percentiles([gap for sample in good for gap in sample.gaps])
    if refused:
        line["refused"] = percentiles(refused)
    if concurrency is not None:
        # All clients are busy until the last request has gone out; with no more requests than clients they never are.
        until = max(sample.due for sample in samples)
        line["in_flight"] = mean_in_flight(samples, until) if len(samples) > concurrency else None
    return line
