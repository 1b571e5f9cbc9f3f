"""`forge-cli data build`: prepare a recipe's data sets now, so that training starts at once. No torch."""

from __future__ import annotations

import json
import time

from llmforge.data.build import DataSets, build_data
from llmforge.data.mix_table import table_lines
from llmforge.inspect_command import ask, load_encoder


def build(words: list[str]) -> int:
    """Write the encoded data sets to the cache, or find them there; ends with the mixture of an epoch."""
    asked = ask("build", words)
    if asked is None:
        return 0
    encoder = load_encoder(asked.recipe, "build")
    started = time.perf_counter()
    data = build_data(asked.recipe, encoder.tokenizer, encoder.template, keep_small=True)
    elapsed_s = time.perf_counter() - started
    if asked.flags.json:
        print(json.dumps(_told(data, elapsed_s), ensure_ascii=False))
    else:
        print("\n".join(_lines(data, elapsed_s)))
    return 0


def _told(data: DataSets, elapsed_s: float) -> dict[str, object]:
    sets = [
        {
            "name": one.name,
            "rows_in": one.read.rows_in,
            "rows": len(one.encoded),
            "tokens": int(one.encoded.offsets[-1]),
            "folder": str(one.folder) if one.folder else None,
            "made": one.made,
        }
        for one in data.prepared
    ]
    return {"sets": sets, "elapsed_s": round(elapsed_s, 3), **data.as_dict()}


def _lines(data: DataSets, elapsed_s: float) -> list[str]:
    lines = []
    for one in data.prepared:
        where = one.folder or "memory: rows of a hub are encoded when training starts"
        rows, tokens = len(one.encoded), int(one.encoded.offsets[-1])
        lines.append(f"{one.name}: {rows:,} rows, {tokens:,} tokens {'written to' if one.made else 'found in'} {where}")
    for report in data.reports:
        lines += [f"{report.name}: {count:,} rows left out: {reason}" for reason, count in report.reasons().items()]
    rows = sum(one.read.rows_in for one in data.prepared)
    lines += [*table_lines(data.mixture), f"{rows:,} rows in {elapsed_s:.1f} s, {rows / elapsed_s:,.0f} a second"]
    return lines
