"""A tokenizer.json out of older tokenizer files, made once and cached.

SentencePiece models (`tokenizer.model` of Llama 1 and 2, Baichuan, InternLM ...) are read here: no remote code, and no
package beside `tokenizers`. vocab.json with merges.txt and vocab.txt go through transformers, which is imported for
that alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from llmforge.errors import RecipeError
from llmforge.runs import atomic_write

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece's types of pieces
UNIGRAM, BPE = 1, 2
OLD_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


def convert(folder: Path) -> Path:
    """The path of a tokenizer.json for a folder that has none; in the cache, named after the source's content.

    Raises:
        RecipeError: the folder holds no tokenizer, or one that cannot be converted.
    """
    found = [folder / name for name in OLD_FILES if (folder / name).exists()]
    if not found or [path.name for path in found] == ["tokenizer_config.json"]:
        raise RecipeError(f"tokenizer: {folder} holds no tokenizer.json, and none of {', '.join(OLD_FILES[:3])} either")
    if found[0].name == "tokenizer.model" and not is_sentencepiece(found[0]):
        raise RecipeError(
            f"tokenizer: {found[0]} is no SentencePiece model. A tiktoken file says neither how text is cut nor which "
            "control tokens there are, so it is not guessed at; take a release of the model that has a tokenizer.json"
        )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16]
    path = cache_dir() / digest / "tokenizer.json"
    if not path.exists():
        source = folder / "tokenizer.model"
        tokenizer = from_sentencepiece(source) if source.exists() else _from_transformers(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, tokenizer.to_str())
    return path


def cache_dir() -> Path:
    """Where converted tokenizers are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "llmforge" / "tokenizers"


def is_sentencepiece(path: Path) -> bool:
    """Whether a file begins with a piece (tag 0x0a), as SentencePiece models do; tiktoken's files are lines of text."""
    with path.open("rb") as file:
        start = file.read(2)
    return start[:1] == b"\n" and b"\n" not in start[1:]


@dataclass
class SentencePiece:
    """What of a SentencePiece model file decides ids. Source: sentencepiece_model.proto of google/sentencepiece."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # text, score, type
    kind: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""  # precompiled normalisation rules
    dummy_prefix: bool = True
    squeeze_spaces: bool = True


def read_sentencepiece(data: bytes) -> SentencePiece:
    """Parse the model file.

    Raises:
        RecipeError: the bytes are no such file.
    """
    model = SentencePiece()
    try:
        for number, value in _fields(data):
            if number == 1:
                parts: dict[int, Any] = dict(_fields(value))
                model.pieces.append((parts[1].decode(), _float(parts.get(2, b"\0\0\0\0")), parts.get(3, NORMAL)))
            elif number == 2:
                spec = dict(_fields(value))
                model.kind, model.byte_fallback = spec.get(3, UNIGRAM), bool(spec.get(35, 0))
            elif number == 3:
                spec = dict(_fields(value))
                model.charsmap = spec.get(2, b"")
                model.dummy_prefix, model.squeeze_spaces = bool(spec.get(3, 1)), bool(spec.get(4, 1))
    except (IndexError, KeyError, ValueError) as error:
        raise RecipeError(f"tokenizer: the SentencePiece model cannot be read: {error}") from None
    if not model.pieces or model.kind not in (UNIGRAM, BPE):
        raise RecipeError("tokenizer: expected a SentencePiece model of type unigram or bpe")
    return model


def from_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece model file."""
    model = read_sentencepiece(path.read_bytes())
    unknown = next((i for i, piece in enumerate(model.pieces) if piece[2] == UNKNOWN), 0)
    if model.kind == BPE:
        vocabulary = {text: i for i, (text, _, _) in enumerate(model.pieces)}
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary,
                _merges(model),
                unk_token=model.pieces[unknown][0],
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        )
    else:
        scored = [(text, score) for text, score, _ in model.pieces]
        tokenizer = Tokenizer(models.Unigram(scored, unknown, byte_fallback=model.byte_fallback))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()] if model.squeeze_spaces else []
    steps += [normalizers.Prepend("▁")] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    own = [
        AddedToken(text, normalized=False, special=True) for text, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)
    ]
    tokenizer.add_special_tokens(own)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, _, kind in model.pieces if kind == USER_DEFINED])
    return tokenizer


def _merges(model: SentencePiece) -> list[tuple[str, str]]:
    """BPE merges in SentencePiece's order: the piece with the best score first; ties as the pieces stand."""
    ranks = {text: (-score, i) for i, (text, score, kind) in enumerate(model.pieces) if kind in (NORMAL, UNUSED)}
    merges = [
        (ranks[text], (ranks[text[:cut]][1], ranks[text[cut:]][1]), (text[:cut], text[cut:]))
        for text in ranks
        for cut in range(1, len(text))
        if text[:cut] in ranks and text[cut:] in ranks
    ]
    return [pair for _, _, pair in sorted(merges)]


def _from_transformers(folder: Path) -> Tokenizer:
    """Whatever transformers can turn into a fast tokenizer without remote code."""
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # transformers raises almost anything for files it does not know
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecipeError(
            f"tokenizer: {folder} has no tokenizer.json, and converting its files fails: {reason}"
        ) from None
    return backend


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields: ints, and bytes for texts, messages and floats."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            if wire != 2:
                raise ValueError(f"wire type {wire}")
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7


def _float(data: bytes) -> float:
    value: float = struct.unpack("<f", data)[0]
    return value
