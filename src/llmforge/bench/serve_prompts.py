"""The prompts of a load: made ones that share nothing or a long instruction, or those of a file."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.bench.workload import FAULTS, INSTRUCTION, PLACES, REMARKS
from llmforge.errors import RecipeError

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompts:
    """Prompt number n, the same for every server. `digest` tells two sets apart, `title` names one in the table."""

    make: Callable[[int], Messages]
    title: str
    digest: str
    shared: int  # characters in front of every prompt

    def __call__(self, number: int) -> Messages:
        return self.make(number)


def made(num_chars: int, shared: str) -> Prompts:
    """Reports of `num_chars` characters, no two alike, behind `shared`."""

    def make(number: int) -> Messages:
        return user(shared, report(number, num_chars))

    return Prompts(make, f"{num_chars} characters", digest(shared, num_chars), len(shared))


def report(number: int, num_chars: int) -> str:
    """A text that differs from other numbers' from its first word on."""
    draw = random.Random(number)
    kind = draw.choice(sorted(FAULTS))
    text = f"{draw.randrange(10**6):06} is the report: {draw.choice(FAULTS[kind])} in {draw.choice(PLACES)}"
    while len(text) < num_chars:
        text += f", {draw.choice(REMARKS)}"
    return text[:num_chars]


def instruction(num_chars: int) -> str:
    """The first characters of an instruction, which goes round when it is too short."""
    return (INSTRUCTION * (num_chars // len(INSTRUCTION) + 1))[:num_chars]


def of_file(path: Path, shared: str) -> Prompts:
    """The prompts of a file in turn: a line each, or JSONL with `messages`, `prompt`, or `instruction` and `input`.

    Raises:
        RecipeError: the file cannot be read, is empty, or a line is none of these.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RecipeError(f"--prompts: {path} cannot be read ({error})") from None
    if not lines:
        raise RecipeError(f"--prompts: {path} is empty")
    is_json = path.suffix in (".jsonl", ".json")
    rows = [read_line(path, n, line) if is_json else line for n, line in enumerate(lines, start=1)]

    def make(number: int) -> Messages:
        row = rows[number % len(rows)]
        return user(shared, row) if isinstance(row, str) else row

    return Prompts(make, path.stem, digest(shared, *lines), len(shared))


def read_line(path: Path, number: int, line: str) -> str | Messages:
    """A JSON line as a text or as messages."""
    try:
        row = json.loads(line)
    except ValueError:
        raise RecipeError(f"--prompts: {path}, line {number} is no JSON") from None
    match row:
        case str():
            return row
        case {"messages": [*messages]}:
            return [message for message in messages if message.get("role") != "assistant" or message != messages[-1]]
        case {"prompt": str(text)}:
            return text
        case {"instruction": str(text)}:
            return "\n".join(part for part in (text, row.get("input")) if part)
    raise RecipeError(f"--prompts: {path}, line {number} has none of messages, prompt, instruction")


def user(shared: str, text: str) -> Messages:
    return [{"role": "user", "content": f"{shared}\n\n{text}" if shared else text}]


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
