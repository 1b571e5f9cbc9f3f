"""How fast rows become an encoded set on disk, against the bare tokenizer on the same texts; and the memory it takes.

    python benchmarks/encode_rows.py --rows 1000000 --tokenizer MODEL_FOLDER --template qwen

"bare" holds the texts ready in memory and does nothing but `encode_batch_fast`, `.ids` and an arrow file. "forge" is
what `forge-cli data build` does: hash and read the JSON lines, check them, write them in the template, encode, label,
cut, and write arrays that ranks map. Each runs in a process of its own, `--repeats` times in turn, and its best time
counts. The ratio is bare time / forge time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from llmforge.data.encode import EncodeOptions
from llmforge.data.encode_block import MODES, Block, Cutter
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import RowReport
from llmforge.data.prepare import Reading, prepare
from llmforge.data.templates.find import get_template
from llmforge.data.templates.template import LabelPolicy
from llmforge.data.tokenizer import load_tokenizer

PLACES = ("north gate", "school yard", "river bank", "old bridge", "market hall", "station square", "harbour")
EVENTS = ("smoke on the stairs", "water in the cellar", "a fallen tree", "a power cut", "a car in the ditch")
KINDS = ("fire", "flood", "tree", "power", "traffic")
BATCH = 10_000  # rows the bare tokenizer is given at a time


def write_rows(path: Path, count: int) -> None:
    """Short rows, every question and every answer different."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            event, place = i % len(EVENTS), PLACES[i * 7 % len(PLACES)]
            caller = i * 7919 % 1_000_003
            report = f"Caller {caller} reports {EVENTS[event]} near the {place}, house {i % 97}."
            answer = json.dumps({"kind": KINDS[event], "caller": caller})
            row = {"instruction": "Sort the report.", "input": report, "output": answer}
            file.write(json.dumps(row) + "\n")


def bare(options: argparse.Namespace) -> float:
    """Seconds for encode_batch_fast, .ids and an arrow file, of texts that are in memory a batch at a time."""
    import pyarrow

    tokenizer = load_tokenizer(options.tokenizer)
    backend = tokenizer._backend_after("nothing")
    schema = pyarrow.schema([("ids", pyarrow.list_(pyarrow.int32()))])
    elapsed_s = 0.0
    path = Path(options.folder) / "ids.arrow"
    with open(path, "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        for texts in texts_of(options):
            started = time.perf_counter()
            ids = [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(ids, schema.types[0])], schema))
            elapsed_s += time.perf_counter() - started
    path.unlink()
    return elapsed_s


def texts_of(options: argparse.Namespace) -> Iterator[list[str]]:
    """The texts that the template leaves to the tokenizer."""
    tokenizer = load_tokenizer(options.tokenizer)
    cutter = Cutter(get_template(options.template, tokenizer), tokenizer, LabelPolicy())
    examples = reading(options).examples(RowReport("bare"))
    while rows := list(islice(examples, BATCH)):
        block = Block()
        for example in rows:
            block.add(*cutter.cut(example.messages, example.tools))
        yield [text for mode in MODES for text in block.texts[mode]]


def forge(options: argparse.Namespace) -> float:
    """Seconds for the whole preparation."""
    tokenizer = load_tokenizer(options.tokenizer)
    template = get_template(options.template, tokenizer)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        started = time.perf_counter()
        made = prepare(reading(options), template, tokenizer, EncodeOptions("sft"), Path(folder), keep_small=True)
        elapsed_s = time.perf_counter() - started
        assert made.folder, made.read.notes
        assert len(made.encoded) == options.rows
    return elapsed_s


def reading(options: argparse.Namespace) -> Reading:
    return Reading(DatasetEntry("rows", Path(options.folder) / "rows.jsonl"), "sft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokenizer", required=True, help="folder with a tokenizer.json")
    parser.add_argument("--template", default="qwen")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", help="where rows and results are written; default a temporary folder")
    parser.add_argument("--part", choices=("bare", "forge"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        elapsed_s = bare(options) if options.part == "bare" else forge(options)
        used = resource.getrusage(resource.RUSAGE_SELF)
        told = {"elapsed_s": elapsed_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}
        print(json.dumps(told))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_rows(Path(folder) / "rows.jsonl", options.rows)
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.repeats):
            for part in ("bare", "forge"):
                words = [*sys.argv[1:], "--folder", folder, "--part", part]
                done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
                found = json.loads(done.stdout)
                if part not in best or found["elapsed_s"] < best[part]["elapsed_s"]:
                    best[part] = found
    for part, found in best.items():
        rate = options.rows / found["elapsed_s"]
        print(f"{part:<6} {found['elapsed_s']:7.2f} s  {rate:9,.0f} rows/s  peak memory {found['peak_mib']:,.0f} MiB")
    print(f"ratio  {best['bare']['elapsed_s'] / best['forge']['elapsed_s']:.2f}")


if __name__ == "__main__":
    main()
