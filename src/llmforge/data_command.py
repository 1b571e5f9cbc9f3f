"""`forge-cli data`: look at data as the model sees it. No torch."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmforge.config.schema import ModelConfig
from llmforge.data.entry import DatasetEntry
from llmforge.data.example import IGNORE, Encoded, Message, RowRef
from llmforge.data.files import KINDS, kind_of, read_rows
from llmforge.data.formats.openai import read_message
from llmforge.data.formats.row import Rejected, RowContext, read_tools
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import Tokenizer, load_tokenizer
from llmforge.errors import RecipeError, nearest
from llmforge.model.sources import local_folder

USAGE = """\
forge-cli data tokens --model M --template T FILE   token ids and labels of conversations

FILE holds {"messages": [...], "tools": [...]} lines. M is a model folder or a folder with a tokenizer.
  --json             one line {"input_ids", "labels", "text"} for each conversation
  --prompt-only      what a server would feed to get the last assistant turn
  --default-system S --enable-thinking true|false|null --tool-format F    as in a recipe
  $ forge-cli data tokens --model models/qwen --template qwen data/chats.jsonl"""
THINKING = {"true": True, "false": False, "null": None}
GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"


def main(words: list[str]) -> int:
    """Run one subcommand; returns the exit code."""
    name, rest = words[0] if words else "--help", words[1:]
    if name in LATER:
        module, _, function = LATER[name].partition(":")
        code: int = getattr(importlib.import_module(module), function)(rest)
        return code
    if "--help" in words or "-h" in words or not words:
        print("\n".join([USAGE, "", "Each says more with --help:", *MORE]))
        return 0
    if name not in COMMANDS:
        known = [*COMMANDS, *LATER]
        raise RecipeError(f"data: {name!r} is no subcommand.{nearest(name, known)} Known: {', '.join(known)}")
    return COMMANDS[name](rest)


@dataclass(frozen=True)
class Chat:
    """One line of the file."""

    source: RowRef
    messages: list[Message]
    tools: tuple[dict[str, Any], ...]


def tokens(words: list[str]) -> int:
    """Print ids and labels of every conversation; all lines are read before the first is printed."""
    options = _options(words)
    tokenizer = load_tokenizer(_folder(options.model))
    template = get_template(
        options.template,
        tokenizer,
        default_system=options.default_system,
        enable_thinking=THINKING[options.enable_thinking],
        tool_format=options.tool_format,
    )
    rows = []
    for chat in _chats(Path(options.file)):
        messages = _asking(chat.messages) if options.prompt_only else chat.messages
        try:
            row = template.encode(tokenizer, messages, chat.tools, add_generation_prompt=options.prompt_only)
            text = template.text(tokenizer, messages, chat.tools, add_generation_prompt=options.prompt_only)
        except RecipeError as error:
            raise RecipeError(f"{chat.source}: {error}") from None
        rows.append((chat.source, row, text))
    if not rows:
        raise RecipeError(f"data tokens: {options.file} holds no conversation")
    for source, row, text in rows:
        if options.json:
            print(json.dumps({**row._asdict(), "text": text}, ensure_ascii=False))
        else:
            _show(source, row, tokenizer)
    return 0


def _folder(model: str) -> Path:
    """The folder of a model's tokenizer."""
    path = Path(model)
    if path.is_dir() or path.is_file():
        return path
    folder = local_folder(ModelConfig(model_name_or_path=model))
    if folder is None:
        raise RecipeError(f"--model: {model} is not fetched yet: forge-cli models get {model}")
    return folder


def _chats(path: Path) -> Iterator[Chat]:
    if not path.is_file():
        raise RecipeError(f"data tokens: no file {str(path)!r}")
    if kind_of(path) is None:
        raise RecipeError(f"data tokens: {str(path)!r}: files of this kind are not read. Known: {', '.join(KINDS)}")
    entry = DatasetEntry(path.name, path, formatting="openai")
    for number, row in read_rows(path, remark=lambda text: print(text, file=sys.stderr)):
        source = RowRef(str(path), number)
        try:
            if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
                raise Rejected("expected an object with a list `messages`")
            context = RowContext(entry, "prompt", source)
            messages = [read_message(message, context) for message in row["messages"]]
            yield Chat(source, messages, read_tools(row.get("tools")))
        except Rejected as error:
            raise RecipeError(f"{source}: {error}") from None


def _asking(messages: list[Message]) -> list[Message]:
    """The messages before the last assistant turn; all of them when none follows the last question."""
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return messages[:last] if last == len(messages) - 1 else messages


def _show(source: RowRef, row: Encoded, tokenizer: Tokenizer) -> None:
    """One token a line: id, piece, label; learned ones green on a terminal."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    learned = sum(label != IGNORE for label in row.labels)
    print(f"{source}: {len(row.input_ids)} tokens, {learned} learned")
    for token, label in zip(row.input_ids, row.labels, strict=True):
        piece = tokenizer.decode([token]) or tokenizer.token(token)
        piece = tokenizer.token(token) if "�" in piece else piece
        line = f"{token:>8}  {json.dumps(piece, ensure_ascii=False):<24}  {label if label != IGNORE else '-'}"
        print(f"{GREY if label == IGNORE else GREEN}{line}{RESET}" if colour else line)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"data tokens: {message}\n{USAGE}")


def _options(words: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="forge-cli data tokens", add_help=False, allow_abbrev=False)
    parser.add_argument("file")
    parser.add_argument("--model", required=True)
    parser.add_argument("--template", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prompt-only", action="store_true")
    parser.add_argument("--default-system")
    parser.add_argument("--enable-thinking", choices=tuple(THINKING), default="true")
    parser.add_argument("--tool-format")
    return parser.parse_args(words)


COMMANDS = {"tokens": tokens}
# Subcommands of other rooms, imported when they are asked for; MORE says what they do.
LATER = {
    "check": "llmforge.inspect_command:check",
    "stats": "llmforge.inspect_command:stats",
    "show": "llmforge.inspect_command:show",
    "coverage": "llmforge.inspect_command:coverage",
    "build": "llmforge.build_command:build",
    "generate": "llmforge.datagen.command:main",
    "make": "llmforge.datagen.command:main",
    "label": "llmforge.datagen.command:label",
    "review": "llmforge.datagen.review_command:main",
    "convert": "llmforge.datagen.convert_command:convert_main",
    "add": "llmforge.datagen.convert_command:add_main",
    "clean": "llmforge.datagen.rows_command:clean",
    "split": "llmforge.datagen.rows_command:split",
    "merge": "llmforge.datagen.rows_command:merge",
    "dedupe": "llmforge.datagen.rows_command:dedupe",
    "diversify": "llmforge.datagen.rows_command:diversify",
    "contamination": "llmforge.datagen.rows_command:contamination",
}
MORE = (
    "forge-cli data check R      read every row: rejects by reason, duplicates, lengths, leaks; stats, show, coverage",
    "forge-cli data build R      prepare the data sets of a recipe now, so that training finds them",
    "forge-cli data generate R   make checked rows with a teacher (alias: make)",
    "forge-cli data label R      label rows by clue and reason, by majority",
    "forge-cli data review R     accept, edit, reject rows; exchange them with a spreadsheet",
    "forge-cli data convert R    rows or a table become training files and an entry",
    "forge-cli data add NAME FILE   describe a file in dataset_info.json",
    "forge-cli data clean|split|merge|dedupe|diversify|contamination FILE...   steps over rows",
)
