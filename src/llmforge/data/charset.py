"""In which encoding a text file is written: UTF-8 with or without a mark, UTF-16 with its mark, or GB18030.

The system's own encoding never matters, so that a file reads the same on Windows and Linux.
"""

from __future__ import annotations

import codecs
import gzip
import io
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from llmforge.errors import RecipeError

CHUNK = 1 << 20
SAMPLE = 1 << 16  # bytes around the first broken one; enough to tell Chinese text from a damaged file


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unzipped when it is called .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else open(path, "rb")


def open_text(path: Path, *, newline: str | None = None) -> tuple[io.TextIOWrapper, str | None]:
    """Open a text file in its own encoding; also what is worth telling about it, or None for plain UTF-8.

    Raises:
        RecipeError: the bytes are no text in any of the encodings; names the file, line and byte.
    """
    encoding, remark = detect(path)
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline), remark


def detect(path: Path) -> tuple[str, str | None]:
    """(codec, remark) of a text file, found by decoding all of it once.

    GB18030 decodes almost any bytes to some Chinese characters, so it is believed only when UTF-8 fails nearly
    everywhere and the characters are common ones (those of GB2312).

    Raises:
        RecipeError: see open_text.
    """
    with open_bytes(path) as file:
        head = file.read(4)
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not head.startswith(codecs.BOM_UTF32_LE)
    first = "utf-16" if marked else "utf-8-sig"
    bad = _first_bad(path, first)
    if bad is None:
        return first, "written in UTF-16; read as such" if marked else None
    if marked or not _is_chinese(path, bad.offset):
        name = "UTF-16 throughout, as its first bytes say" if marked else "UTF-8"
        raise RecipeError(f"{path}: line {bad.line}: not {name} (byte {bad.offset}); save the file as UTF-8")
    bad = _first_bad(path, "gb18030")
    if bad is None:
        return "gb18030", "not UTF-8; read as GB18030"
    raise RecipeError(f"{path}: line {bad.line}: neither UTF-8 nor GB18030 (byte {bad.offset}); save the file as UTF-8")


class Place(NamedTuple):
    """A byte of a file, and the line it is in, counted from 1."""

    line: int
    offset: int


def _first_bad(path: Path, encoding: str) -> Place | None:
    """The first byte that is not text in this encoding, found by decoding the whole file in pieces."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, done = 1, 0
    with open_bytes(path) as file:
        while True:
            piece = file.read(CHUNK)
            held = len(decoder.getstate()[0])  # bytes of a character that the last piece cut
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                good = max(error.start - held, 0)
                return Place(line + piece[:good].count(b"\n"), done + good)
            if not piece:
                return None
            line += piece.count(b"\n")
            done += len(piece)


def _is_chinese(path: Path, offset: int) -> bool:
    """Whether the text around a byte that is not UTF-8 reads as everyday Chinese in GB18030."""
    with open_bytes(path) as file:
        start = max(offset - SAMPLE // 2, 0)
        file.seek(start)
        sample = file.read(SAMPLE)
    if start:
        sample = sample[sample.find(b"\n") + 1 :]  # pairs of bytes can only be told apart from the start of a line
    as_utf8 = sample.decode("utf-8", "replace")
    broken = as_utf8.count("\ufffd")
    whole = sum(1 for c in as_utf8 if ord(c) > 127) - broken
    if whole > broken:
        return False  # mostly good UTF-8 with some damage; GB18030 would turn the good part into nonsense
    foreign = [c for c in sample.decode("gb18030", "ignore") if ord(c) > 127]
    common = sum(1 for c in foreign if _in_gb2312(c))
    return bool(foreign) and common >= 0.9 * len(foreign)


def _in_gb2312(character: str) -> bool:
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True
