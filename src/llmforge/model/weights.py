"""Weight files without torch: which there are, whether they are whole, what shapes they hold, whose weights they are.

A safetensors file is 8 bytes (length of the header, little endian), a JSON header and the tensors' bytes
(github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from llmforge.errors import RecipeError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class TensorInfo(NamedTuple):
    """One tensor of a safetensors file; `start` and `end` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name.

    Raises:
        RecipeError: the file is missing, cut short or not safetensors; the message names it.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise RecipeError(f"{path}: damaged or cut short ({size:,} bytes); fetch or save it again")
            header = json.loads(file.read(length))
        tensors = {
            name: TensorInfo(
                t["dtype"], tuple(t["shape"]), 8 + length + t["data_offsets"][0], 8 + length + t["data_offsets"][1]
            )
            for name, t in header.items()
            if name != "__metadata__"
        }
    except FileNotFoundError:
        raise RecipeError(f"{path}: weight file is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise RecipeError(f"{path}: not a readable safetensors file; fetch or save it again") from None
    expected = max((t.end for t in tensors.values()), default=8 + length)
    if size != expected:
        raise RecipeError(f"{path}: damaged or cut short: {size:,} bytes, its header promises {expected:,}")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors shards of a model folder, in order; empty when it has none.

    Raises:
        RecipeError: the index is damaged.
    """
    if (index := folder / INDEX).is_file():
        try:
            return [
                folder / name
                for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            ]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise RecipeError(f"{index}: damaged index of weight files; fetch or save it again") from None
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def has_weights(folder: Path) -> bool:
    """Whether all weight files of a model folder are there (not whether they are whole)."""
    files = weight_files(folder)
    return all(f.is_file() for f in files) if files else any((folder / name).is_file() for name in PICKLED)


def check_weights(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder by name, after a look at every shard's header and length.

    Raises:
        RecipeError: no weights, a shard is missing, cut short or damaged; the message names the file.
    """
    files = weight_files(folder)
    if not files and not any((folder / name).is_file() for name in PICKLED):
        raise RecipeError(f"model_name_or_path: {folder} holds no weights ({SINGLE} or {INDEX})")
    return {name: info for path in files for name, info in read_header(path).items()}


def fingerprint(folder: Path) -> str:
    """What tells two bases apart, wherever they lie: sha256 over names, shapes and a sample of every tensor's bytes.

    16 hex digits, empty for weights that are not safetensors; 64 bytes per tensor are read, milliseconds for 7B.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        tensors = read_header(path)
        with open(path, "rb") as file:
            for name, info in sorted(tensors.items()):
                file.seek(info.start + (info.end - info.start) // 2)
                digest.update(f"{name}{info.dtype}{info.shape}".encode() + file.read(min(64, info.end - info.start)))
    return digest.hexdigest()[:16] if weight_files(folder) else ""
