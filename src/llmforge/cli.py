"""`forge-cli`: a table of commands, each a function that takes the words behind it and returns an exit code.

A command's module is imported when the command is used, so `--help` and mistakes answer at once.
Exit codes: 0 done; 1 the run failed; 2 wrong input or a missing extra; 3 a gate stopped it; 130 and 143 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llmforge import __version__
from llmforge.errors import ForgeError, RecipeError, nearest


@dataclass(frozen=True)
class Command:
    """One command: where its function is, what it does, a line to copy, and what it takes besides a recipe."""

    function: str
    help: str
    example: str
    options: str = ""
    reads_recipe: bool = True


COMMANDS: dict[str, Command] = {
    "train": Command("llmforge.train_command:main", "Train a model.", "forge-cli train recipes/classify_lora.yaml"),
    "predict": Command(
        "llmforge.eval.command:main",
        "Generate for a test set and score.",
        "forge-cli predict runs/classify",
        options="--json  print the scores as JSON",
    ),
    "chat": Command(
        "llmforge.infer.command:main",
        "Talk to a model in the terminal.",
        "forge-cli chat runs/classify",
        options="--prompt TEXT  print one reply and end;  --system TEXT;  --compare  base beside adapter",
    ),
    "export": Command(
        "llmforge.export.command:main", "Merge adapters into a model folder.", "forge-cli export runs/classify"
    ),
    "api": Command("llmforge.serve.command:main", "Serve the OpenAI API.", "forge-cli api runs/classify port=8000"),
    "webui": Command(
        "llmforge.webui_command:main", "The board in a browser.", "forge-cli webui port=7860", reads_recipe=False
    ),
    "gateway": Command(
        "llmforge.gateway.command:main",
        "Several workers behind one address.",
        "forge-cli gateway configs/gateway.yaml",
        reads_recipe=False,
    ),
    "recipe": Command(
        "llmforge.recipe_command:main",
        "Check, show, explain, begin recipes.",
        "forge-cli recipe check recipes/classify_lora.yaml",
        reads_recipe=False,
    ),
    "data": Command(
        "llmforge.data_command:main",
        "Look at data as the model sees it.",
        "forge-cli data tokens --model MODEL --template auto rows.jsonl",
        reads_recipe=False,
    ),
    "runs": Command(
        "llmforge.runs_command:main", "List, watch, stop and resume runs.", "forge-cli runs list", reads_recipe=False
    ),
    "bench": Command(
        "llmforge.bench.command:main",
        "Measure speed and memory.",
        "forge-cli bench train recipes/classify_lora.yaml --batching padded,tree",
        reads_recipe=False,
    ),
    "models": Command(
        "llmforge.model.command:main", "Fetch and list models.", "forge-cli models list", reads_recipe=False
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns what the process ends with."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        return _run(words)
    except ForgeError as error:
        print(f"forge-cli: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("forge-cli: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _open_streams() -> None:
    """Python has no stream object where the caller closed one (`>&-`); nothing is read there, and nothing kept."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  as long as the process lives


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        if words[1:] and words[1] in COMMANDS:
            return _run([words[1], "--help"])
        print(overview())
        return 0
    name, rest = words[0], words[1:]
    if name in ("version", "--version", "-V"):
        print(f"llmforge {__version__}")
        return 0
    if name not in COMMANDS:
        raise RecipeError(
            f"{name!r} is no command.{nearest(name, COMMANDS)} Commands: {', '.join([*COMMANDS, 'version'])}"
        )
    command = COMMANDS[name]
    if command.reads_recipe and any(word in ("--help", "-h") for word in rest):
        from llmforge.config.help import command_help

        print(command_help(name, command.help, command.example, command.options))
        return 0
    module, _, function = command.function.partition(":")
    code = getattr(importlib.import_module(module), function)(rest)
    sys.stdout.flush()
    return code


def overview() -> str:
    """What `forge-cli --help` prints: one screen, a command to copy for each mode."""
    lines = ["forge-cli: from raw data to a served domain language model, driven by one recipe.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<8} {command.help}")
        lines.append(f"           $ {command.example}")
    return "\n".join(
        [
            *lines,
            "  version  Print the version.",
            "",
            "A recipe is a YAML file, a run folder, or nothing but key=value; key=value after it overrides:",
            "           $ forge-cli train recipes/classify_lora.yaml learning_rate=1e-4 output_dir=runs/try",
            "Every key: forge-cli recipe explain KEY.  Keys of a command: forge-cli COMMAND --help.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
