"""Where the files that a recipe names are: beside the recipe, in the working directory, or shipped with Forge."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmforge.config.schema import Origin

PACKAGE = Path(__file__).parents[1]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".xlsx")
# LLaMA-Factory's examples/deepspeed, by file name.
DEEPSPEED_NAMES = {
    "ds_z0_config.json": "z0.json",
    "ds_z2_config.json": "z2.json",
    "ds_z2_offload_config.json": "z2_offload.json",
    "ds_z3_config.json": "z3.json",
    "ds_z3_offload_config.json": "z3_offload.json",
}


def bundled(relative: str) -> Path | None:
    """A file or folder shipped with Forge, for example "configs/deepspeed"; in a checkout or in an installed wheel."""
    for root in (PACKAGE / "shipped", PACKAGE.parents[1]):  # the wheel's place, the checkout's
        if (root / relative).exists():
            return root / relative
    return None


def find_input(name: str, origin: Origin | None) -> str | None:
    """A file or folder that exists: beside the recipe that names it, then in the working directory; None when absent.

    A path said on the command line belongs to the working directory.
    """
    path = Path(os.path.expanduser(name))
    if path.is_absolute():
        return str(path) if os.path.exists(path) else None
    if origin and origin.file and os.path.exists(beside := Path(origin.file).parent / path):
        found = os.path.normpath(beside)
        return os.path.abspath(found) if found.startswith("..") else found
    return os.path.normpath(path) if os.path.exists(path) else None


def looks_local(name: str) -> bool:
    """Whether a model or adapter name can only be a path: `./x`, `/x`, `~/x`, `a/b/c`, or a .gguf file."""
    if name.startswith("pypi:"):
        return False
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or not HUB_ID.fullmatch(name)


def find_deepspeed(name: str, origin: Origin | None) -> tuple[str | None, str | None]:
    """A DeepSpeed file, and a note when it is one that Forge ships instead of the one named."""
    if found := find_input(name, origin):
        return found, None
    file = Path(name).name
    file = DEEPSPEED_NAMES.get(file, file)
    shipped = bundled(f"configs/deepspeed/{file}")
    if shipped is None or not shipped.is_file():
        return None, None
    note = (
        None
        if name == f"configs/deepspeed/{file}"
        else f"deepspeed: {name} is not here; Forge's configs/deepspeed/{file} is used"
    )
    return str(shipped), note
