"""Rows and bytes drawn at random: every row is accounted for, and no exception is of a class outside our own."""

import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmforge.data.read import read_examples
from llmforge.data.registry import load_registry, resolve_dataset
from llmforge.errors import RecipeError

TEXTS = [
    "",
    " ",
    "q",
    "打印机",
    "a\r\nb",
    "\0",
    "\ud800",
    "<|im_end|>",
    "[]",
    "{}",
    "[{",
    '{"name": "f"}',
    "true",
    "x" * 5000,
]
KEYS = [
    "instruction", "input", "output", "history", "system", "tools", "conversations", "messages", "from", "value",
    "role", "content", "tool_calls", "function", "name", "arguments", "type", "text", "chosen", "rejected", "label",
    "loss", "",
]  # fmt: skip
ROLES = ["human", "gpt", "user", "assistant", "system", "tool", "function_call", "observation", None, 3]
ENTRIES = [
    ("sft", {"columns": {"history": "history", "system": "system", "tools": "tools"}}),
    ("sft", {"formatting": "sharegpt", "columns": {"tools": "tools", "system": "system"}}),
    ("sft", {"formatting": "openai", "columns": {"messages": "messages", "tools": "tools"}}),
    ("prompt", {"formatting": "openai", "columns": {"messages": "conversations"}}),
    ("dpo", {"ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}),
    ("rm", {"ranking": True, "formatting": "sharegpt", "columns": {"chosen": "chosen", "rejected": "rejected"}}),
    ("kto", {"formatting": "openai", "columns": {"messages": "messages", "kto_tag": "label"}}),
    ("pt", {"formatting": "text"}),
    ("pt", {"columns": {"prompt": "text"}}),
]


def anything(draw, depth=0):
    kind = draw.randrange(10 if depth < 4 else 7)
    if kind < 3:
        return draw.choice(TEXTS)
    if kind < 7:
        return draw.choice([None, True, False, 0, -1, 10**30, 1.5, float("nan"), float("inf"), draw.choice(ROLES)])
    if kind == 7:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): anything(draw, depth + 1) for _ in range(draw.randrange(5))}


def message(draw):
    item = {draw.choice(["from", "role"]): draw.choice(ROLES), draw.choice(["value", "content"]): draw.choice(TEXTS)}
    for key in draw.sample(["tool_calls", "content", "loss", "reasoning_content", "function_call"], draw.randrange(2)):
        item[key] = anything(draw, 2)
    return item


def row(draw):
    if draw.random() < 0.1:
        return anything(draw)
    made = {key: anything(draw) for key in draw.sample(KEYS, 6)}
    for key in ("conversations", "messages"):
        if draw.random() < 0.7:
            made[key] = [message(draw) for _ in range(draw.randrange(5))]
    for key in ("instruction", "output", "text"):
        if draw.random() < 0.7:
            made[key] = draw.choice(TEXTS)
    return made


@pytest.mark.parametrize(("stage", "entry"), ENTRIES, ids=lambda value: value if isinstance(value, str) else "")
def test_rows_in_are_rows_out_and_rejected(stage, entry, tmp_path):
    draw = random.Random(f"{stage} {sorted(entry)}")
    # The first row holds every column, so that no column is missing in the whole file.
    rows = [dict.fromkeys(KEYS), *(row(draw) for _ in range(400))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    examples, report = read_examples(load_registry({"s": {"file_name": str(path), **entry}})["s"], stage=stage)
    assert report.rows_in == len(rows)
    assert report.rows_out == len(examples)
    places = [s.row for s, _ in report.rejected] + [e.source.row for e in examples]
    assert sorted(places) == list(range(1, len(rows) + 1))
    assert all(reason for _, reason in report.rejected)


def whole_file(kind, path):
    rows = [{"instruction": "问", "output": "答"}, {"instruction": "a\nb", "output": 'c"d'}]
    lines = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    if kind in ("csv", "tsv"):
        table = io.StringIO()
        writer = csv.writer(table, delimiter="," if kind == "csv" else "\t")
        writer.writerows([rows[0].keys(), *(r.values() for r in rows)])
        return table.getvalue().encode()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path.read_bytes()
    if kind == "arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return path.read_bytes()
    text = (
        json.dumps(rows, ensure_ascii=False, indent=1) if kind.startswith("json") and kind != "jsonl" else lines
    ).encode()
    return gzip.compress(text) if kind.endswith("gz") else text


def damaged(content, draw):
    data = bytearray(content)
    for _ in range(draw.randrange(4)):
        place = draw.randrange(len(data) + 1)
        new = [
            draw.choice([0, 10, 13, 34, 44, 92, 0x80, 0xFE, 0xFF, draw.randrange(256)])
            for _ in range(draw.randrange(4))
        ]
        data[place : place + draw.randrange(3)] = bytes(new)
    return bytes(data)


def problem_of(act):
    """The message of a RecipeError, None when nothing is wrong; every other exception fails the test."""
    try:
        act()
    except RecipeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "txt", "json.gz", "parquet", "arrow"])
def test_damaged_files_are_read_or_told(kind, tmp_path):
    draw = random.Random(kind)
    path = tmp_path / f"a.{kind}"
    content = whole_file(kind, path)

    def read():
        _, report = read_examples(resolve_dataset(str(path), {}), stage="pt" if kind == "txt" else "sft")
        assert report.rows_in == report.rows_out + len(report.rejected)

    problems = []
    for _ in range(150):
        path.write_bytes(damaged(content, draw))
        problems.append(problem_of(read))
    told = [problem for problem in problems if problem]
    assert 0 < len(told) < len(problems)
    assert all(f"a.{kind}" in problem for problem in told)


def test_broken_registries_are_told():
    draw = random.Random(0)
    keys = ["file_name", "formatting", "columns", "tags", "ranking", "num_samples", "split", "x"]
    for _ in range(300):
        values = [anything(draw), "a.json", {"prompt": "q"}, {draw.choice(KEYS): anything(draw)}]
        entry = {draw.choice(keys): draw.choice(values) for _ in range(3)}
        assert "'s'" in (problem_of(lambda entry=entry: load_registry({"s": entry})) or "'s'")
