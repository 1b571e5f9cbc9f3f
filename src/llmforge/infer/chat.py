"""The terminal chat: one conversation with one model, or the same conversation with two of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TextIO
from unicodedata import east_asian_width

from llmforge.data.example import ROLES, Message
from llmforge.errors import ForgeError, nearest
from llmforge.infer.protocol import Conversation, Engine, GenerateRequest, Sampling
from llmforge.runs import atomic_write

SIDE_BY_SIDE_FROM = 100  # columns of the terminal; narrower ones show the replies one after the other

HELP = """\
/system TEXT  set the system prompt and start anew; without TEXT show it
/regen        answer the last message again
/clear        forget the conversation, keep the system prompt
/save FILE    write the conversation as JSON
/load FILE    go on with a saved conversation
/exit         leave (Ctrl-D does too); Ctrl-C stops a reply"""


class Chat:
    """A conversation that grows; each model of `models` sees its own replies as history.

    Args:
        run: runs a coroutine to its end, for example `asyncio.Runner().run`; Ctrl-C ends it with KeyboardInterrupt.
        models: served names that answer every message.
        out, notes: where replies (stdout) and where everything else (stderr) is written.
    """

    def __init__(
        self,
        engine: Engine,
        run: Callable[[Coroutine[Any, Any, None]], None],
        models: Sequence[str],
        sampling: Sampling,
        system: str = "",
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ):
        self.engine, self.run, self.models, self.sampling = engine, run, list(models), sampling
        self.out, self.notes = out or sys.stdout, notes or sys.stderr
        self.histories: dict[str, list[Message]] = {}
        self.replies: dict[str, str] = {}
        self.num_tries = 0  # replies to the last message, so that a seed draws another one each time
        self.set_system(system)

    # --- the conversation ---

    def set_system(self, text: str) -> None:
        """A new conversation under this system prompt; "" leaves it to the template."""
        self.system = text
        self.histories = {name: [Message("system", text)] if text else [] for name in self.models}

    def say(self, text: str) -> bool:
        """Send a message and write the reply, or the replies, as they come; False when Ctrl-C ended them.

        Raises:
            ForgeError: the engine refused or failed; the message is taken back.
        """
        for history in self.histories.values():
            history.append(Message("user", text))
        self.num_tries = 0
        return self.answer()

    def answer(self) -> bool:
        """Let every model answer the last message. Ctrl-C ends the replies where they are, and gives False."""
        side_by_side = len(self.models) > 1 and self.out.isatty() and self._width() >= SIDE_BY_SIDE_FROM
        self.replies = dict.fromkeys(self.models, "")
        is_whole = True
        try:
            for name in self.models:
                if len(self.models) > 1 and not side_by_side:
                    self._write(f"--- {name}\n")
                self.run(self._stream(name, quiet=side_by_side))
        except KeyboardInterrupt:
            self._note("[stopped]")
            is_whole = False
            if not all(self.replies.values()):
                self._take_back()
                return is_whole
        except ForgeError:
            self._take_back()
            raise
        if side_by_side:
            self._write(in_columns(self.models, list(self.replies.values()), self._width()) + "\n")
        for name, text in self.replies.items():
            self.histories[name].append(Message("assistant", with_think_mark(text)))
        return is_whole

    def _take_back(self) -> None:
        for history in self.histories.values():
            history.pop()

    async def _stream(self, name: str, quiet: bool) -> None:
        """One model's reply to its history, gathered in `replies` and written as it comes."""
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=sampling.seed + self.num_tries)
        request = GenerateRequest(name, Conversation(tuple(self.histories[name])), sampling)
        reason = None
        try:
            async with aclosing(self.engine.generate(request)) as pieces:
                async for piece in pieces:
                    self.replies[name] += piece.text
                    reason = piece.finish_reason
                    if not quiet:
                        self._write(piece.text)
        finally:
            if not quiet and (self.replies[name] or reason):
                self._write("\n")
        if reason == "length":
            self._note("[cut off at the longest reply allowed: max_new_tokens, max_length or the model's context]")

    # --- commands ---

    def handle(self, line: str) -> bool:
        """Do what a line says; False when the chat is over."""
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/"):
            self._guarded(self.say, line.rstrip("\n"))
            return True
        word, _, rest = text.partition(" ")
        if word in ("/exit", "/quit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/regen": self._regen,
            "/clear": lambda rest: self._clear(),
            "/save": self.save,
            "/load": self.load,
            "/help": lambda rest: self._note(HELP),
        }
        if word not in commands:
            self._note(f"no command {word!r}.{nearest(word, [*commands, '/exit'])} /help lists them")
            return True
        self._guarded(commands[word], rest.strip())
        return True

    def _guarded(self, action: Callable[[str], object], text: str) -> None:
        """What goes wrong with one line is said, and the chat goes on."""
        try:
            action(text)
        except OSError as error:
            self._note(f"forge-cli: {text}: {error.strerror or error}")  # the error may name a temporary file
        except (ForgeError, ValueError) as error:
            self._note(f"forge-cli: {error}")

    def _system(self, text: str) -> None:
        if text:
            self.set_system(text)
        self._note(f"system prompt: {self.system or '(the template has its own, or none)'}")

    def _clear(self) -> None:
        self.set_system(self.system)
        self._note("the conversation is forgotten" + (", the system prompt is kept" if self.system else ""))

    def _regen(self, rest: str) -> None:
        if not all(history and history[-1].role == "assistant" for history in self.histories.values()):
            raise ValueError("there is no reply to give again")
        self._take_back()
        self.num_tries += 1
        self.answer()

    def save(self, path: str) -> None:
        """Write the first model's conversation as {"messages": [...]}, a form that training reads too.

        Raises:
            ValueError: no file is named.
        """
        if not path:
            raise ValueError("expected a file name")
        messages = [{"role": m.role, "content": m.content} for m in self.histories[self.models[0]]]
        atomic_write(Path(path), json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n")
        self._note(f"{len(messages)} messages written to {path}")

    def load(self, path: str) -> None:
        """Go on with a saved conversation.

        Raises:
            ValueError: the file holds no conversation.
        """
        if not path:
            raise ValueError("expected a file name")
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        rows = value.get("messages") if isinstance(value, dict) else value
        if not isinstance(rows, list) or not all(_is_message(row) for row in rows):
            raise ValueError(f'{path}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
        messages = [Message(row["role"], row["content"]) for row in rows]
        self.system = messages[0].content if messages and messages[0].role == "system" else ""
        self.histories = {name: list(messages) for name in self.models}
        self._note(f"{len(messages)} messages read from {path}")

    # --- writing ---

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def _note(self, text: str) -> None:
        print(text, file=self.notes, flush=True)

    def _width(self) -> int:
        return shutil.get_terminal_size().columns


def _is_message(row: object) -> bool:
    return isinstance(row, dict) and row.get("role") in ROLES and isinstance(row.get("content"), str)


def with_think_mark(text: str) -> str:
    """The reply as history; a prompt that opens the think block itself leaves the reply without its first mark."""
    return f"<think>{text}" if "</think>" in text and "<think>" not in text else text


def in_columns(names: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Texts next to each other under their names, each wrapped to its share of `width`."""
    share = (width - 3 * (len(texts) - 1)) // len(texts)
    cells = [[name, "-" * min(share, 20), *wrapped(text, share)] for name, text in zip(names, texts, strict=True)]
    height = max(len(lines) for lines in cells)
    rows = zip(*(lines + [""] * (height - len(lines)) for lines in cells), strict=True)
    return "\n".join(" | ".join(line + " " * (share - columns_of(line)) for line in row).rstrip() for row in rows)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces where there are some."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for char in paragraph:
            if columns_of(line + char) > width:
                at = line.rfind(" ")
                cut = at + 1 if at > 0 else len(line)
                lines.append(line[:cut].rstrip())
                line = line[cut:]
            line += char
        lines.append(line)
    return lines


def columns_of(text: str) -> int:
    """Terminal columns of a text; a Chinese character takes two."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)
