"""`forge-cli bench serve`: how much a server bears, and how it compares with others on the same machine.

Rounds go through the servers in turn, every second one backwards; a server that is started here runs alone, from its
start to its end, so that no other takes its CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmforge.bench import serve_ledger, serve_prompts
from llmforge.bench.ledger import append, machine
from llmforge.bench.serve_chart import draw
from llmforge.bench.serve_client import Client, closed_loop, open_loop, probe
from llmforge.bench.serve_ledger import Load
from llmforge.bench.serve_process import Server, read_servers
from llmforge.bench.serve_stats import summarise
from llmforge.bench.serve_table import as_json, comparisons, knees, text_table, told, told_knee
from llmforge.config.arguments import Arguments
from llmforge.errors import RecipeError, RunError, require
from llmforge.runs import atomic_write

PROMPTS_PER_STEP = 10**5
STEPS_PER_ROUND = 10**3  # the first of them for warming up


def serve_parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="forge-cli bench serve",
        description="Measure OpenAI-compatible servers: requests/s, tokens/s, latency percentiles, knee.",
        epilog='example: forge-cli bench serve --server forge="forge-cli api runs/classify port={port}" '
        "--concurrency 1,8,32",
    )
    add = parser.add_argument
    add("--url", action="append", default=[], metavar="[NAME=]URL", help="a server that runs, up to /v1")
    add("--server", action="append", default=[], metavar="NAME=COMMAND", help="start it; {port} is filled in")
    add("--pid", action="append", default=[], metavar="NAME=PID", help="count this process and its children as NAME's")
    add("--model", help="served names, asked in turn, as a,b (default: the first one)")
    add("--concurrency", default="1,8,32,104", help="closed loops: clients at once (default 1,8,32,104)")
    add("--rate", metavar="N,...", help="open loops instead: requests per second at random moments")
    add("--requests", metavar="N,...", help="requests of each step, or one number for all (default: twice the clients)")
    add("--chars", type=int, default=250, help="characters of a made prompt, all different (default 250)")
    add("--prompts", metavar="FILE", help="prompts instead: a line each, or JSONL with messages or prompt")
    add("--shared", default="0", metavar="N|FILE", help="characters, or a text, in front of every prompt (default 0)")
    add("--tokens", type=int, default=20, help="tokens to generate (default 20)")
    add("--body", metavar="JSON|FILE", help='further fields of each request, as {"temperature": 1}')
    add("--natural-end", action="store_true", help="let replies end by themselves; otherwise ignore_eos or min_tokens")
    add("--plain", action="store_true", help="whole answers instead of streams: no TTFT")
    add("--tokenizer", metavar="FOLDER", help="count tokens of servers that do not say (default: pieces of text)")
    add("--key-env", metavar="NAME", help="environment variable with the servers' API key")
    add("--warmup", type=int, default=4, help="requests before the first step (default 4)")
    add("--timeout", type=float, default=600.0, help="seconds until a request counts as failed (default 600)")
    add("--start-timeout", type=float, default=300.0, help="seconds a server may take to start (default 300)")
    add("--rounds", type=int, default=1, help="times through all servers; 0: only show the ledger (default 1)")
    add("--ledger", default="runs/bench_serve.jsonl", help="appended to (default runs/bench_serve.jsonl)")
    add("--json", metavar="OUT", help="write the table as JSON")
    add("--chart", metavar="OUT.png", help="draw it")
    return parser


def main(words: list[str]) -> int:
    """Run `bench serve`; 1 when a server could not be measured."""
    given = serve_parser().parse_args(words)
    bench = ServeBench(given)
    with ends_like_ctrl_c():
        failed = bench.run() if given.rounds else []
    rows = serve_ledger.rows_of(serve_ledger.read(bench.ledger))
    print(text_table(rows))
    for line in (*map(told_knee, knees(rows)), *map(told, comparisons(rows))):
        print(line)
    if given.json:
        atomic_write(Path(given.json), json.dumps(as_json(rows), indent=1, ensure_ascii=False) + "\n")
    if given.chart and rows:
        draw(rows, Path(given.chart))
    for text in failed:
        print(f"forge-cli: bench serve: {text}", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """SIGTERM must not leave a server behind that was started here."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class ServeBench:
    """The rounds of one command, with everything that can be wrong with its options found first."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.ledger = given, Path(given.ledger)
        for option, least in (("chars", 1), ("tokens", 1), ("warmup", 0), ("rounds", 0)):
            if getattr(given, option) < least:
                raise RecipeError(f"--{option}: got {getattr(given, option)}, expected at least {least}")
        self.loop = "open" if given.rate else "closed"
        self.levels = numbers("--rate", given.rate, float) if given.rate else counts("--concurrency", given.concurrency)
        self.requests = self._requests()
        shared = _shared(given.shared)
        self.prompts = (
            serve_prompts.of_file(Path(given.prompts), shared)
            if given.prompts
            else serve_prompts.made(given.chars, shared)
        )
        self.body = _body(given.body) if given.body else {}
        self.key = os.environ.get(given.key_env) if given.key_env else None
        if given.key_env and not self.key:
            raise RecipeError(f"--key-env: the environment variable {given.key_env} is not set")
        if given.chart:
            require("matplotlib", "plot", "--chart")
        # No prompt may be in a server's prefix cache already, also of a server that an earlier command has measured.
        self.first = time.time_ns()
        self.servers = read_servers(given.server, given.url, given.pid) if given.rounds else []
        self.count = _counter(given.tokenizer) if given.tokenizer else None

    def _requests(self) -> list[int]:
        if not self.given.requests:
            return [
                max(6, int(2 * level)) if self.loop == "closed" else max(20, int(10 * level)) for level in self.levels
            ]
        found = counts("--requests", self.given.requests)
        if len(found) == 1:
            found *= len(self.levels)
        if len(found) != len(self.levels):
            raise RecipeError(f"--requests: {len(found)} numbers for {len(self.levels)} steps")
        return found

    def run(self) -> list[str]:
        """All rounds; returns what failed."""
        failed = []
        with tempfile.TemporaryDirectory(prefix="forge-bench-") as folder:
            for number in range(1, self.given.rounds + 1):
                for server in self.servers if number % 2 else self.servers[::-1]:
                    say(f"round {number}: {server.name}")
                    try:
                        self._round(server, number, Path(folder))
                    except RunError as error:
                        failed.append(f"{server.name}: {error}")
                        say("  failed")
                    finally:
                        server.stop()
        return failed

    def _round(self, server: Server, number: int, folder: Path) -> None:
        served = server.start(folder, self.given.start_timeout, self.key)
        models = self.given.model.split(",") if self.given.model else served[:1]
        if absent := [name for name in models if name not in served]:
            raise RunError(f"it serves no {', '.join(absent)}, but {', '.join(served)}")
        body, note = asyncio.run(self._warm_up(server, models))
        say(f"  ready after {server.start_s:.1f} s{f'; {note}' if note else ''}")
        for step, (level, num_requests) in enumerate(zip(self.levels, self.requests, strict=True)):
            first = self.first + PROMPTS_PER_STEP * (STEPS_PER_ROUND * number + step)
            line = asyncio.run(self._step(server, level, num_requests, self._bodies(models, body, first)))
            load = Load(
                server.name, ",".join(models), self.prompts.title, self.prompts.digest, self.prompts.shared,
                self.given.tokens, self.loop, level, json.dumps(self.body, sort_keys=True) if self.body else "",
            )  # fmt: skip
            append(self.ledger, load.as_dict() | stamp(number, note, server) | line)
            told_errors = f", errors {line['errors']}" if line["errors"] else ""
            say(f"  {load.title}: {line['req_per_s']:.2f} req/s, {line['tokens_per_s']:.1f} tok/s{told_errors}")
            if not line["num_good"]:
                raise RunError(f"no request of {load.title} was answered: {line['detail']}")

    def _bodies(self, models: list[str], extra: dict[str, Any], first: int) -> Callable[[int], dict[str, Any]]:
        """Request number n of a step; its prompt is number first + n."""
        stream = {} if self.given.plain else {"stream": True, "stream_options": {"include_usage": True}}
        fixed = {"temperature": 0, "max_tokens": self.given.tokens} | stream | extra | self.body

        def body(number: int) -> dict[str, Any]:
            return {"model": models[number % len(models)], "messages": self.prompts(first + number), **fixed}

        return body

    async def _warm_up(self, server: Server, models: list[str]) -> tuple[dict[str, Any], str]:
        """Fields that make replies long enough here, and what is to be said of them."""
        async with Client(str(server.url), self.key, self.given.timeout, self.count) as client:
            extra, note = (
                ({}, "") if self.given.natural_end else await probe(client, self._bodies(models, {}, self.first)(0))
            )
            for number in range(1, self.given.warmup + 1):
                await client.ask(self._bodies(models, extra, self.first)(number))
        return extra, note

    async def _step(
        self, server: Server, level: float, num_requests: int, body: Callable[[int], dict[str, Any]]
    ) -> dict[str, Any]:
        before, own_before = server.usage(), time.process_time()
        async with Client(str(server.url), self.key, self.given.timeout, self.count) as client:
            if self.loop == "closed":
                samples = await closed_loop(client, body, int(level), num_requests)
            else:
                samples = await open_loop(client, body, level, num_requests)
        own = time.process_time() - own_before
        line = summarise(samples, int(level) if self.loop == "closed" else None)
        line["client_share"] = own / line["wall_s"]
        line["detail"] = next((sample.detail for sample in samples if sample.error), "")
        spent = server.usage().since(before)
        if spent:
            total = sum(spent.values())
            line["cpu_s"], line["cpu_s_per_request"] = total, total / num_requests
            listener = server.listener()
            if sum(seconds > 0 for seconds in spent.values()) > 1 and listener in spent:
                line["http_share"] = spent[listener] / total
        line["memory_bytes"] = server.memory_bytes()
        return line


def stamp(number: int, note: str, server: Server) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%S")
    start_s = server.start_s if server.command else None
    return {"machine": machine(), "time": when, "round": number, "note": note, "start_s": start_s}


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """A list of numbers above 0.

    Raises:
        RecipeError: it is none.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if any(value <= 0 for value in found):
        raise RecipeError(f"{option}: got {text!r}, expected numbers above 0, as 1,8,32")
    return found


def counts(option: str, text: str) -> list[int]:
    return numbers(option, text, int)


def _shared(text: str) -> str:
    if text.isdecimal():
        return serve_prompts.instruction(int(text))
    try:
        return Path(text).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RecipeError(f"--shared: expected a number of characters or a file ({error})") from None


def _body(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"--body: expected a JSON object or a file with one ({error})") from None
    if not isinstance(found, dict):
        raise RecipeError("--body: expected a JSON object")
    return found


def _counter(folder: str) -> Callable[[str], int]:
    from llmforge.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(folder))
    return lambda text: len(tokenizer.ids(text))
