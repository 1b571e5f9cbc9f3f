"""`forge-cli chat R`: talk to a model in the terminal, or ask it one thing with --prompt."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmforge.config.load import load_recipe
from llmforge.config.names import ENGINES
from llmforge.config.said import say_loading
from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError
from llmforge.infer.chat import HELP, Chat
from llmforge.infer.defaults import sampling_of
from llmforge.infer.protocol import Engine


@dataclass
class ChatWords:
    """What stands behind `chat`: its own flags, and the words of the recipe."""

    recipe: list[str]
    prompt: str | None = None
    system: str = ""
    compare: bool = False


def main(words: Sequence[str]) -> int:
    """Chat; with --prompt TEXT print one reply and nothing else on stdout; --compare asks base and adapter."""
    given = read_words(words)
    recipe = load_recipe(given.recipe, "chat")
    for note in recipe.notes:
        print(note, file=sys.stderr)
    say_loading(recipe)
    with asyncio.Runner() as runner:
        alone = replace(recipe, serve=replace(recipe.serve, replicas=1))  # one conversation gets all cores
        engine: Engine = ENGINES.get(recipe.serve.infer_backend).from_recipe(alone)
        runner.run(engine.start())
        try:
            chat = open_chat(engine, runner.run, recipe, given)
            if given.prompt is not None:
                return 0 if chat.say(given.prompt) else 130
            talk(chat)
        finally:
            runner.run(engine.stop())
    return 0


def read_words(words: Sequence[str]) -> ChatWords:
    """Split the words behind `chat`.

    Raises:
        RecipeError: a flag without its text.
    """
    given = ChatWords([])
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--compare":
            given.compare = True
        elif name in ("--prompt", "--system"):
            text = value if equals else next(rest, None)
            if text is None:
                raise RecipeError(f"{name}: expected a text behind it")
            # Bytes that are no UTF-8 come from the shell as lone surrogates, which no tokenizer takes.
            setattr(given, name[2:], text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        else:
            given.recipe.append(word)
    return given


def open_chat(
    engine: Engine, run: Callable[[Coroutine[Any, Any, None]], None], recipe: Recipe, given: ChatWords
) -> Chat:
    """A chat with the recipe's model; with --compare its base answers too.

    Raises:
        RecipeError: --compare without an adapter.
    """
    cards = engine.models()
    names = [cards[0].id]
    if given.compare:
        if cards[0].adapter is None:
            raise RecipeError(
                "--compare: there is no adapter to compare with its base; name a run or adapter_name_or_path"
            )
        names.append(cards[0].base)
    seed = recipe.train.seed if "seed" in recipe.origins and recipe.run_dir is None else None
    return Chat(engine, run, names, sampling_of(recipe.generate, seed=seed), given.system)


def talk(chat: Chat) -> None:
    """Read lines until /exit or the end of input."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() a history and line editing
        print(f"{', '.join(chat.models)} is ready.\n{HELP}\n", file=sys.stderr)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("> " if is_terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)", file=sys.stderr)
            continue
        if not chat.handle(line):
            return
