"""How this machine stands: devices, memory, disk, versions; good, worth a look, or in the way. No torch."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from llmforge import __version__
from llmforge.webui.amounts import size
from llmforge.webui.board import Board
from llmforge.webui.devices import devices
from llmforge.webui.index import RunRow
from llmforge.webui.words import Words

GOOD, LOOK, BAD = "good", "warn", "bad"
DISK_LOOK, DISK_BAD = 10 * 10**9, 10**9
MEMORY_LOOK = 2 * 10**9
NEEDED = ("torch", "transformers", "peft")  # without them nothing trains


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it stands, and what to say of it."""

    level: str
    name: str
    text: str


def examine(words: Words, board: Board, rows: list[RunRow]) -> list[Finding]:
    """All findings, in the order in which the page shows them."""
    found = []
    for device in devices():
        level = LOOK if device.free < MEMORY_LOOK else GOOD
        text = words("home.free", label=device.label, free=size(device.free), total=size(device.total))
        found.append(Finding(level, words("home.device"), text))
    disk = shutil.disk_usage(board.root)
    level = BAD if disk.free < DISK_BAD else LOOK if disk.free < DISK_LOOK else GOOD
    text = words("home.free", label=str(board.root), free=size(disk.free), total=size(disk.total))
    found.append(Finding(level, words("home.disk"), text))
    versions = {name: _version(name) for name in NEEDED}
    told = ", ".join(f"{name} {number or words('home.missing')}" for name, number in versions.items())
    level = GOOD if all(versions.values()) else BAD
    told = f"Forge {__version__}, Python {platform.python_version()}, {told}"
    found.append(Finding(level, words("home.versions"), told))
    if lost := [row.name for row in rows if row.state == "lost"]:
        found.append(Finding(LOOK, words("home.lost"), ", ".join(lost[:5])))
    return found


def worst(found: list[Finding]) -> str:
    """The level of the lamp."""
    levels = [finding.level for finding in found]
    return BAD if BAD in levels else LOOK if LOOK in levels else GOOD


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
