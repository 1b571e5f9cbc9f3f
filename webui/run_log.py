"""The end of a run's log: only the last part is read and shown, whatever its length, with problems marked."""

from __future__ import annotations

import re
from pathlib import Path

from llmforge.runs import RunDir
from llmforge.webui.launch import CONSOLE
from llmforge.webui.markup import Safe, tag
from llmforge.webui.problem import mask
from llmforge.webui.words import Words

TAIL_BYTES = 96 << 10  # of a log; a run's may be hundreds of megabytes
TAIL_LINES = 400
PROBLEM = re.compile(r"(?i)\b(error|alarm|warning|warn|failed|failure|traceback|exception|killed)\b|cannot|forge-cli:")

# The end stays in sight for as long as the reader has not scrolled away from it.
FOLLOW = """
let follows = true;
element.addEventListener('scroll', (event) => {
  const log = event.target;
  follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}, true);
const follow = () => {
  const log = element.querySelector('pre.log');
  if (log && follows) log.scrollTop = log.scrollHeight;
};
watch('value', follow);
setTimeout(follow);
"""


def last_text(path: Path, most: int = TAIL_BYTES) -> str:
    """The last part of a text file, from the start of a line."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            length = file.tell()
            file.seek(max(length - most, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text if length <= most else text.partition("\n")[2]


def show_log(words: Words, run: RunDir, search: str, only_problems: bool) -> Safe:
    """The last lines that match, with problems marked."""
    text = last_text(run.path / CONSOLE)
    if not text:
        return tag("p", words("runs.no_log"), class_="calm empty")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in mask(text).rstrip("\n").split("\n")]
    if search:
        lines = [line for line in lines if search.lower() in line.lower()]
    if only_problems:
        lines = [line for line in lines if PROBLEM.search(line)]
    shown = [tag("span", line + "\n", class_="bad") if PROBLEM.search(line) else line + "\n" for line in lines]
    if not shown:
        return tag("p", words("runs.no_match"), class_="calm empty")
    return tag("pre", *shown[-TAIL_LINES:], class_="log", tabindex="0", role="region", aria_label=words("runs.tab.log"))
