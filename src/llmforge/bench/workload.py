"""The rows a benchmark trains on: made ones, or the first of a file, written so that every trainer can read them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import RecipeError

DATASET = "bench"
SEED = 0

INSTRUCTION = """You sort the reports of a water utility's night shift. Every report was typed in a hurry, so \
expect short forms, missing words and wrong spelling. Answer with one JSON object and nothing else.
The object has four fields. "kind" is one of: leak, for water that comes out where it should not; pressure, for \
too much or too little of it at the tap; quality, for colour, smell, taste or particles; power, for pumps, \
switchgear and batteries; access, for gates, keys, alarms and people on the site; meter, for readings that cannot \
be right; noise, for what only the neighbours noticed; other, when nothing fits. If two kinds fit, take the \
one that somebody has to act on first.
"urgent" is true when drinking water may be unsafe, when water runs into a building, when a road is under water, \
when a pump station has no power, or when the caller depends on a medical device. It is false in all other cases, \
also when the caller is angry.
"place" is the part of the town in lower case, as the report names it, and "crew" the crew's number or 0.
A report that only says that an earlier one is settled keeps the kind of the earlier one and is never urgent.
Do not explain your choice, and write "unknown" for what is not there."""

PLACES = ("harbour", "old town", "north hill", "mill quarter", "station", "meadow side", "east bank", "upper field")
FAULTS = {
    "leak": ("water comes up between the cobbles", "the hydrant drips since noon", "a pipe burst under the pavement"),
    "pressure": (
        "only a trickle on the third floor",
        "the tap spits and stops",
        "the boiler shows too little pressure",
    ),
    "quality": ("the water looks brown", "a smell of chlorine in the kitchen", "white flakes in the glass"),
    "power": ("pump two does not start", "the switchgear reports a lost phase", "the battery of the station is flat"),
    "access": ("the gate stands open", "the alarm of the tower rings", "the key of the pump house is missing"),
    "meter": ("the meter runs backwards", "a reading ten times last year's", "the counter shows nothing at all"),
    "noise": ("a humming in the wall at night", "the valve knocks every minute", "the pump whistles"),
}
REMARKS = (
    "caller waited twenty minutes on the line", "crew four is on the way", "second call about the same thing this week",
    "no answer when we rang back", "neighbours at number nine see it as well", "photo sent to the duty mailbox",
    "the street is narrow so bring the small van", "caller will be at home until six",
    "last repair there was in march by the contractor", "dog in the yard please ring first",
    "the cellar is dry so far", "temperature below zero since midnight", "crew two has the other half of the plan",
    "key is with the baker next door",
)  # fmt: skip
WORDS = (
    "river", "stone", "bridge", "lantern", "garden", "winter", "letter", "copper", "market", "harbour", "orchard",
    "silver", "pepper", "window", "candle", "forest", "meadow", "barrel", "saddle", "thunder", "ribbon", "marble",
)  # fmt: skip


CREWS = {"crew four": 4, "crew two": 2}


def classify(num_rows: int, length: int) -> list[dict[str, str]]:
    """A shared instruction of about 300 tokens, 40 to 100 own tokens, a short JSON answer; `length` plays no part."""
    draw = random.Random(SEED)
    rows = []
    for _ in range(num_rows):
        kind = draw.choice(sorted(FAULTS))
        place, urgent = draw.choice(PLACES), draw.random() < 0.3
        remarks = draw.sample(REMARKS, draw.randint(0, 2))
        clock = f"{draw.randint(0, 23):02}:{draw.randint(0, 59):02}"
        report = f"{clock}, {place}: " + "; ".join([draw.choice(FAULTS[kind]), *remarks])
        crew = next((number for words, number in CREWS.items() if words in report), 0)
        answer = json.dumps({"kind": kind, "urgent": urgent, "place": place, "crew": crew})
        rows.append({"instruction": INSTRUCTION, "input": report, "output": answer})
    return rows


def fill(num_rows: int, length: int) -> list[dict[str, str]]:
    """Rows longer than `length` tokens that share nothing, so that every answer is cut at the length under test."""
    draw = random.Random(SEED)

    def text(num_words: int) -> str:
        return " ".join(draw.choices(WORDS, k=num_words))

    return [{"instruction": text(length // 8 + 1), "input": "", "output": text(length)} for _ in range(num_rows)]


def dpo(num_rows: int, length: int) -> list[dict[str, str]]:
    """The rows of `classify` as pairs: the answer, and one that names another kind or loses the place."""
    draw = random.Random(SEED)
    pairs = []
    for row in classify(num_rows, length):
        answer = json.loads(row["output"])
        wrong = {**answer, "kind": draw.choice([kind for kind in sorted(FAULTS) if kind != answer["kind"]])}
        if draw.random() < 0.5:
            wrong = {**answer, "place": "unknown"}
        texts = {"chosen": row["output"], "rejected": json.dumps(wrong)}
        pairs.append({"instruction": row["instruction"], "input": row["input"], **texts})
    return pairs


WORKLOADS: dict[str, Callable[[int, int], list[dict[str, str]]]] = {
    "classify": classify,
    "fill": fill,
    "dpo": dpo,
}


@dataclass(frozen=True)
class DataFolder:
    """A folder with the rows and a dataset_info.json that lists them as `bench`."""

    path: Path
    digest: str  # of the rows: results of other rows are never compared
    stage: str | None = None  # that the rows are for, where the recipe's own would not read them


def write_data(folder: Path, workload: str, num_rows: int, length: int, given: Path | None) -> DataFolder:
    """Write the rows of a workload and the dataset_info.json that describes them.

    Args:
        given: a JSON array or JSONL file in alpaca form, or of pairs in alpaca or sharegpt form, whose first rows are
            taken; None makes the rows.

    Raises:
        RecipeError: the file cannot be read or holds too few rows.
    """
    rows = read_rows(given, num_rows) if given else WORKLOADS[workload](num_rows, length)
    text = json.dumps(rows, ensure_ascii=False, indent=0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{DATASET}.json").write_text(text, encoding="utf-8")
    entry = {"file_name": f"{DATASET}.json", **_described(rows[0])}
    (folder / "dataset_info.json").write_text(json.dumps({DATASET: entry}), encoding="utf-8")
    return DataFolder(folder, hashlib.sha256(text.encode()).hexdigest()[:12], "dpo" if "ranking" in entry else None)


def _described(row: dict[str, Any]) -> dict[str, Any]:
    """What dataset_info.json must say of such rows besides the file; alpaca form needs no word."""
    if "chosen" not in row:
        return {}
    form = {"formatting": "sharegpt"} if "conversations" in row else {}
    prompt = {"messages": "conversations"} if form else {"prompt": "instruction", "query": "input"}
    return {"ranking": True, **form, "columns": {**prompt, "chosen": "chosen", "rejected": "rejected"}}


def read_rows(path: Path, num_rows: int) -> list[dict[str, Any]]:
    """The first rows of a JSON or JSONL file in alpaca form, or of pairs in sharegpt form."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except (OSError, ValueError) as error:
        raise RecipeError(f"--data: {path} cannot be read ({error})") from None
    if len(rows) < num_rows:
        raise RecipeError(f"--data: {path} holds {len(rows)} rows, --rows times (--steps + 1) asks for {num_rows}")
    wrong = [n for n, row in enumerate(rows[:num_rows]) if not isinstance(row, dict) or not _is_known(row)]
    if wrong:
        raise RecipeError(f"--data: row {wrong[0]} of {path} has no key 'instruction'; expected alpaca form")
    return rows[:num_rows]


def _is_known(row: dict[str, Any]) -> bool:
    return "instruction" in row or {"conversations", "chosen", "rejected"} <= row.keys()
