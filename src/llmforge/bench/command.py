"""`forge-cli bench train`: how fast training goes and what it takes, each cell in a process of its own.

A run is a whole `forge-cli train` (or a whole run of another trainer), from the command to its end. Rounds go through
all cells in turn, every second one backwards, so that a machine that slows down does so for every side.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmforge.bench import ledger
from llmforge.bench.cells import (
    FORGE,
    PLACEHOLDERS,
    Cell,
    accumulation,
    check_placeholders,
    fill_in,
    forge_command,
    peer_values,
    side_name,
)
from llmforge.bench.chart import draw
from llmforge.bench.child import Measured, measure
from llmforge.bench.inversions import find_inversions
from llmforge.bench.table import as_json, comparisons, text_table, told
from llmforge.bench.workload import WORKLOADS, DataFolder, write_data
from llmforge.config.arguments import Arguments
from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError, RunError, nearest
from llmforge.runs import atomic_write

BATCHINGS = ("padded", "packed", "tree", "auto")
METHODS = ("lora", "full", "freeze")
KINDS = ("train", "serve")


def main(words: Sequence[str]) -> int:
    """Run `bench train` or `bench serve`; returns the exit code, 1 when a run failed for another reason than memory."""
    from llmforge.bench import serve_command

    parser = train_parser()
    if not words or words[0] in ("-h", "--help"):
        parser.print_help()
        print()
        serve_command.serve_parser().print_help()
        return 0
    if words[0] not in KINDS:
        known = ", ".join(KINDS)
        raise RecipeError(f"bench: {words[0]!r} is nothing to measure.{nearest(words[0], KINDS)} Known: {known}")
    if words[0] == "serve":
        return serve_command.main(list(words[1:]))
    given = parser.parse_intermixed_args(list(words[1:]))
    _check(given)
    path = Path(given.ledger)
    failed = _TrainBench(given, path).run() if given.rounds else []
    rows = ledger.rows_of(ledger.read(path))
    print(text_table(rows))
    for line in [told(comparison) for comparison in comparisons(rows)]:
        print(line)
    for inversion in find_inversions(rows):
        print(f"inverted: {inversion.text}")
    if given.json:
        atomic_write(Path(given.json), json.dumps(as_json(rows), indent=1, ensure_ascii=False) + "\n")
    if given.chart and rows:
        draw(rows, Path(given.chart))
    for text in failed:
        print(f"forge-cli: bench train: {text}", file=sys.stderr)
    return 1 if failed else 0


def train_parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="forge-cli bench train",
        description="Measure training: samples/s, tokens/s, peak memory, time to the first step.",
        epilog="example: forge-cli bench train recipes/classify_lora.yaml --batching padded,tree --rounds 3",
    )
    parser.add_argument("words", nargs="*", metavar="R", help="recipe files, a run folder, key=value, as for train")
    parser.add_argument("--lengths", default="512", help="maximum lengths in tokens, as 512,1024")
    parser.add_argument("--methods", default="lora", help=f"of {','.join(METHODS)}")
    parser.add_argument("--batching", default="padded,packed,tree", help=f"of {','.join(BATCHINGS)}")
    parser.add_argument("--rows", type=int, default=32, help="rows of an optimizer step (default 32)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a padded forward pass (default 4)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after a first one (default 2)")
    parser.add_argument(
        "--epochs", type=int, default=1, help="times the rows come; above 1 all steps are timed, with their preparation"
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each cell; 0: only show the ledger (default 1)")
    parser.add_argument("--workload", help=f"made rows: {' or '.join(WORKLOADS)} (default classify)")
    parser.add_argument("--data", help="rows of this alpaca file instead; --workload then is only their name")
    parser.add_argument(
        "--limit-gb", type=float, help="end a run that takes more resident memory: OOM (GB, 10^9 bytes)"
    )
    names = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    parser.add_argument(
        "--vs", metavar="COMMAND", help=f"shell line of another trainer, run in turn; it may hold {names}"
    )
    parser.add_argument("--vs-config", metavar="FILE", help="its settings with the same placeholders; {config} in --vs")
    parser.add_argument(
        "--ledger", default="runs/bench.jsonl", help="runs are appended here (default runs/bench.jsonl)"
    )
    parser.add_argument("--json", metavar="OUT", help="write the table as JSON")
    parser.add_argument("--chart", metavar="OUT.png", help="draw it")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Everything that can be wrong with the options, before anything runs."""
    for option, known in (("methods", METHODS), ("batching", BATCHINGS)):
        for name in getattr(given, option).split(","):
            if name not in known:
                raise RecipeError(
                    f"--{option}: got {name!r}, expected some of {', '.join(known)}.{nearest(name, known)}"
                )
    if not all(length.isdecimal() and int(length) > 0 for length in given.lengths.split(",")):
        raise RecipeError(f"--lengths: got {given.lengths!r}, expected numbers of tokens, as 512,1024")
    for option, least in (("rows", 1), ("batch", 1), ("steps", 1), ("epochs", 1), ("rounds", 0)):
        if getattr(given, option) < least:
            raise RecipeError(f"--{option}: got {getattr(given, option)}, expected at least {least}")
    accumulation(given.rows, given.batch)
    if (given.steps + 1) % given.epochs:
        raise RecipeError(
            f"--epochs: {given.epochs} do not divide the {given.steps + 1} steps of --steps and the first"
        )
    if not given.data and given.workload and given.workload not in WORKLOADS:
        raise RecipeError(
            f"--workload: {given.workload!r} is not made here.{nearest(given.workload, WORKLOADS)} "
            f"Known: {', '.join(WORKLOADS)}; others need --data FILE"
        )
    for option, text in (("--vs", given.vs), ("--vs-config", given.vs_config and _template(given.vs_config))):
        if text:
            check_placeholders(option, text)
    if given.vs and "{config}" in given.vs and not given.vs_config:
        raise RecipeError("--vs: {config} needs --vs-config FILE")
    if given.vs_config and not given.vs:
        raise RecipeError("--vs-config: it belongs to --vs COMMAND, which is not given")
    if given.chart:
        from llmforge.errors import require

        require("matplotlib", "plot", "--chart")


def _template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--vs-config: {path} cannot be read ({error})") from None


class _TrainBench:
    """The rounds of one command."""

    def __init__(self, given: argparse.Namespace, path: Path):
        self.given, self.path, self.failed = given, path, list[str]()
        self.workload = given.workload or (Path(given.data).stem if given.data else "classify")
        self.num_steps = given.steps + 1

    def run(self) -> list[str]:
        """All rounds, then one more run of the cells that came out inverted; returns what failed."""
        given = self.given
        with tempfile.TemporaryDirectory(prefix="forge-bench-") as folder:
            self.folder = Path(folder)
            self.data = {length: self._data(length) for length in map(int, dict.fromkeys(given.lengths.split(",")))}
            cells = self._cells()
            for number in range(1, given.rounds + 1):
                for cell in cells if number % 2 else cells[::-1]:
                    self._measure(cell, number)
            rows = [row for row in ledger.rows_of(ledger.read(self.path)) if row.cell in cells]
            inverted = [row.cell for found in find_inversions(rows) for row in (found.shorter, found.longer)]
            for cell in dict.fromkeys(inverted):
                print(f"bench: once more, since lengths came out inverted: {_title(cell)}", file=sys.stderr)
                self._measure(cell, given.rounds + 1)
        return self.failed

    def _data(self, length: int) -> DataFolder:
        given = self.given
        num_rows = given.rows * self.num_steps // given.epochs
        return write_data(
            self.folder / f"data{length}", self.workload, num_rows, length, Path(given.data) if given.data else None
        )

    def _cells(self) -> list[Cell]:
        """Every combination, each already checked as `forge-cli train` would check it."""
        given, cells = self.given, list[Cell]()
        options = [word for word in given.words if "=" in word and not Path(word).exists()]
        named = " ".join(w for w in options if w.split("=")[0] not in ("model_name_or_path", "template", "output_dir"))
        for length, data in self.data.items():
            for method in given.methods.split(","):
                sides = []
                for batching in given.batching.split(","):
                    cell = Cell(
                        self.workload, "", method, length, FORGE, batching, given.rows, given.batch, named, given.epochs
                    )
                    command = forge_command(cell, given.words, data, self.folder / "run", self.num_steps)
                    self.recipe = load_recipe(command[4:], "train")
                    sides.append(replace(cell, model=Path(str(self.recipe.model.model_name_or_path)).name))
                if given.vs:
                    sides.append(replace(sides[0], side=side_name(given.vs), batching="its own", words=""))
                cells += sides
        return cells

    def _measure(self, cell: Cell, number: int) -> None:
        print(f"bench: round {number}: {_title(cell)}", file=sys.stderr, flush=True)
        place = Path(tempfile.mkdtemp(dir=self.folder))
        output, said = place / "run", place / "output.txt"
        limit = int(self.given.limit_gb * 1e9) if self.given.limit_gb else None
        # Data sets that an earlier run prepared would make a later one start faster.
        env = os.environ | {"PYTHONUNBUFFERED": "1", "HF_DATASETS_CACHE": str(place / "datasets")}
        command = self._command(cell, output, place)
        seen = measure(command, output / "trainer_log.jsonl", said, env, self.num_steps, limit)
        results = output / "train_results.json"
        found = json.loads(results.read_text(encoding="utf-8")) if cell.side == FORGE and results.exists() else {}
        line = ledger.record(cell, seen, self.data[cell.length].digest, number, found)
        ledger.append(self.path, line)
        self._tell(cell, seen, line)
        shutil.rmtree(place)

    def _command(self, cell: Cell, output: Path, place: Path) -> list[str] | str:
        data = self.data[cell.length]
        if cell.side == FORGE:
            return forge_command(cell, self.given.words, data, output, self.num_steps)
        from llmforge.model.sources import local_folder

        model = local_folder(self.recipe.model)  # fetched by our own run, which comes first
        if model is None:
            raise RunError(
                f"--vs: {self.recipe.model.model_name_or_path} is not on this machine, so {{model}} is unknown"
            )
        template = str(self.recipe.data.template)
        values = peer_values(cell, data, output, self.num_steps, str(model.absolute()), template)
        if self.given.vs_config:
            config = place / Path(self.given.vs_config).name
            values["config"] = str(config)
            config.write_text(fill_in(_template(self.given.vs_config), values), encoding="utf-8")
        return fill_in(self.given.vs, values)

    def _tell(self, cell: Cell, seen: Measured, line: dict) -> None:
        if seen.outcome == "ok":
            rate = line.get("samples_per_s", 0.0)
            text = f"{rate:.3g} samples/s, {seen.peak_bytes / 2**20:.0f} MiB, step 1 after {seen.steps[0].wall_s:.1f} s"
        elif seen.outcome == "oom":
            text = f"OOM: {seen.error.splitlines()[-1] if seen.error else ''}"
        else:
            text = "failed"
            self.failed.append(f"{_title(cell)}: {seen.error}")
        print(f"bench:   {text}", file=sys.stderr, flush=True)


def _title(cell: Cell) -> str:
    how = cell.batching if cell.side == FORGE else cell.side
    return f"{cell.workload}, {cell.model}, {cell.method}, length {cell.length}, {how}"
