"""The table of a ledger of loads, as text and as JSON; the knees, the doubts, and the comparisons in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmforge.bench.serve_ledger import LoadRow, series
from llmforge.bench.serve_stats import knee, little_holds

HEAD = (
    "server", "prompts", "shared", "load", "requests", "errors", "req/s", "tok/s", "tok/reply", "TTFT p50", "gap p50",
    "TP50", "TP90", "TP99", "TP999", "max/TP50", "Little", "CPU s/req", "HTTP %", "client %", "MiB", "start s", "runs",
)  # fmt: skip
NOTE = """c=N: N clients, each sends its next request when it has an answer; N/s: N requests a second at random moments.
TTFT (to the first text), gap (between two texts), TPnn: ms, over the requests of all runs; TPnn is the nearest rank,
and below 1,000 requests TP999 is "max of n". Rates are medians of the runs, from the first request out to the last
answer in. Little: requests in flight over clients while all had work; below 0.9 (marked !) the client was the limit.
HTTP %: share of the server's CPU time spent in the process that takes the connections, where it has others.
client %: CPU time of the load generator over wall time. MiB: resident at the end, shared memory counted once."""


def text_table(rows: Sequence[LoadRow]) -> str:
    """Columns under each other, then what they mean."""
    if not rows:
        return "no loads yet"
    lines = [HEAD, *(columns(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:], "", NOTE])


def columns(row: LoadRow) -> tuple[str, ...]:
    load = row.load
    errors = ", ".join(f"{count} x {kind}" for kind, count in row.errors.items()) or "0"
    name = f"{load.server} [{load.models}]" if "," in load.models else load.server
    name += f" {load.body}" if load.body else ""
    first = (name, load.prompts, str(load.shared), load.title, str(sum(r["num_requests"] for r in row.runs)), errors)
    if not row.good:
        return (*first, *("-" for _ in range(len(HEAD) - len(first) - 1)), str(len(row.runs)))
    latency, ttft = row.pooled("latencies_s"), row.pooled("first_s")
    num_good = sum(run["num_good"] for run in row.good)
    gaps = [run["gap"]["tp50"] for run in row.good if run.get("gap")]
    in_flight, memory = row.median("in_flight"), row.median("memory_bytes")
    little = "-" if in_flight is None else f"{in_flight / load.level:.2f}"
    return (
        *first,
        number(row.median("req_per_s"), 2),
        number(row.median("tokens_per_s"), 1),
        number(row.median("tokens_per_reply"), 1),
        ms(ttft.get("tp50")),
        ms(sorted(gaps)[len(gaps) // 2] if gaps else None),
        ms(latency["tp50"]),
        ms(latency["tp90"]),
        ms(latency["tp99"]),
        ms(latency["tp999"]) if "tp999" in latency else f"{ms(latency['max'])} max of {num_good}",
        f"{latency['max'] / latency['tp50']:.2f}",
        little + ("!" if in_flight is not None and not little_holds(load.level, in_flight) else ""),
        number(row.median("cpu_s_per_request"), 3),
        number(percent(row.median("http_share")), 1),
        number(percent(row.median("client_share")), 1),
        f"{memory / 2**20:.0f}" if memory else "-",
        number(row.median("start_s"), 1),
        str(len(row.runs)),
    )


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def knees(rows: Sequence[LoadRow]) -> list[dict[str, Any]]:
    """Where each closed loop of several steps stops growing."""
    found = []
    for group in series(rows):
        steps = [(row.load.level, row.median("req_per_s") or 0.0) for row in group if row.load.loop == "closed"]
        if (level := knee(steps)) is not None:
            load = group[0].load
            found.append({"server": load.server, "shared": load.shared, "knee": level, "last": max(steps)[0] == level})
    return found


def comparisons(rows: Sequence[LoadRow]) -> list[dict[str, Any]]:
    """The first server against every other under the same load: ratios of medians, first over other."""
    found = []
    for row in rows:
        for other in rows:
            same = (row.load.work, row.load.level, row.machine) == (other.load.work, other.load.level, other.machine)
            if not same or row.load.server != rows[0].load.server or other.load.server == row.load.server:
                continue
            if not row.good or not other.good:
                continue
            pairs = [a["req_per_s"] / b["req_per_s"] for a, b in zip(row.good, other.good)]  # noqa: B905 - one may have more runs
            found.append(
                {"server": row.load.server, "against": other.load.server, "load": row.load.title}
                | {"prompts": row.load.prompts, "shared": row.load.shared}
                | {key: ratio(row, other, key) for key in ("req_per_s", "tokens_per_s", "cpu_s_per_request")}
                | {"req_per_s_range": [min(pairs), max(pairs)]}
            )
    return found


def ratio(row: LoadRow, other: LoadRow, key: str) -> float | None:
    ours, theirs = row.median(key), other.median(key)
    return ours / theirs if ours is not None and theirs else None


def told_knee(found: dict[str, Any]) -> str:
    end = ", the last step: it may lie higher" if found["last"] else ""
    return f"knee of {found['server']} (shared {found['shared']}): c={found['knee']:g}{end}"


def told(comparison: dict[str, Any]) -> str:
    """A comparison as a sentence."""
    low, high = comparison["req_per_s_range"]
    between = f" ({low:.2f} to {high:.2f} from run to run)" if low != high else ""
    what = f"{comparison['prompts']}, shared {comparison['shared']}, {comparison['load']}"
    tokens = number(comparison["tokens_per_s"], 2)
    return (
        f"{comparison['server']} against {comparison['against']}, {what}: requests/s x {comparison['req_per_s']:.2f}"
        f"{between}, tokens/s x {tokens}"
    )


def as_json(rows: Sequence[LoadRow]) -> dict[str, Any]:
    """The same as an object, with every run."""
    shown = [
        row.load.as_dict()
        | {"machine": row.machine, "errors": row.errors}
        | {key: row.median(key) for key in ("req_per_s", "tokens_per_s", "tokens_per_reply", "in_flight", "start_s",
                                            "cpu_s_per_request", "http_share", "client_share", "memory_bytes")}
        | {"latency_s": row.pooled("latencies_s"), "ttft_s": row.pooled("first_s"), "runs": row.runs}
        for row in rows
    ]  # fmt: skip
    return {"rows": shown, "knees": knees(rows), "comparisons": comparisons(rows)}
