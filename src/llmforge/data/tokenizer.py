"""A tokenizer folder as text <-> ids, without transformers.

Two ways in, and no third: `ids` takes anybody's text and never makes a control token of it; `control` takes the name of
a control token. A template decides which of the two a piece of a row is.

What opens a text. SentencePiece tokenizers put a space ("▁") before a text. Where a row is built from several texts,
`after` says what stands before this one:

- "nothing": the text opens the row; the tokenizer adds what it adds.
- "control": a control token stands before it. Tokenizers with a `Prepend` normaliser (Llama 2, Baichuan2) or a
  Metaspace of scheme "always" add the space there too; scheme "first" does not. Both are what transformers gives for
  the whole row written as one string, and what Baichuan2's own `build_chat_input` gives.
- "text": the row's text only goes on (a reply after "ASSISTANT:"), so nothing is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from llmforge.errors import RecipeError, nearest

Before = Literal["nothing", "control", "text"]

# Said outright, or the library warns in every loader process that is forked after a batch was encoded on all cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# Added tokens that are not flagged "special", and yet mark structure: <|fim_prefix|>, <tool_call>,
# <think>, [TOOL_CALLS], <reserved_106>.
# Others (Gemma's runs of newlines, its <table>) are ordinary text in a short form and stay so.
MARK = re.compile(
    r"<[|｜].+[|｜]>|\[/?[A-Z_]{3,}\]|</?(think|tools?|tool_calls?|tool_responses?|answer|reserved_\d+|arg_key|arg_value|\w+_of_\w+)>"
)
CONFIG_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Text <-> ids of one tokenizer folder. Made by `load_tokenizer`; values only, nothing changes after loading.

    Attributes:
        bos_token, eos_token, pad_token, unk_token: names, None where the folder names none; `bos_id`, `eos_id`,
            `pad_id` are their ids.
        chat_template: the folder's own jinja chat template, or None.
        stop_ids: ids that generation_config.json (else config.json) calls ends of text.
        controls: every control token with its id.
    """

    def __init__(self, backend: Backend, config: dict[str, Any], folder: Path, stop_ids: Sequence[int] = ()):
        self.folder = folder
        self.config = config
        self.chat_template: str | None = _template_text(config.get("chat_template"))
        self.bos_token, self.eos_token, self.pad_token, self.unk_token = (
            _name(config.get(key)) for key in CONFIG_TOKENS
        )
        self.stop_ids = tuple(stop_ids)
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        named = [name for name in (self.bos_token, self.eos_token, self.pad_token) if name]
        self.controls: dict[str, int] = {
            token.content: i
            for i, token in added.items()
            if i in self._special or MARK.fullmatch(token.content) or token.content in named
        }
        for name in named:
            if (i := backend.token_to_id(name)) is not None:
                self.controls.setdefault(name, i)
        self._strips = {i: (token.lstrip, token.rstrip) for i, token in added.items()}
        # A mark counts as special only in here, so that `encode_special_tokens` covers it; `_special` keeps the file's
        # flags.
        unflagged = [token for i, token in added.items() if token.content in self.controls and i not in self._special]
        backend.add_special_tokens([AddedToken(t.content, special=True, normalized=False) for t in unflagged])
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.split_marks = lru_cache(maxsize=4096)(self._split_marks)  # slots come again with every turn of every row

    def ids(self, text: str, after: Before = "nothing") -> list[int]:
        """Ids of plain text: no bos is added, and a typed "<|im_end|>" is seven characters' text like any other.

        `after` tells what stands before the text in its row; see the module's docstring.
        """
        if not text:
            return []
        ids: list[int] = self._backend_after(after).encode(text, add_special_tokens=False).ids
        return ids if self._control_ids.isdisjoint(ids) else self._without_controls(text, ids, after)

    def ids_of_many(self, texts: Sequence[str], after: Before = "nothing") -> list[list[int]]:
        """`ids` of each text, in one call that uses all cores."""
        rows = self._backend_after(after).encode_batch_fast(texts, add_special_tokens=False) if texts else []
        controls = self._control_ids
        found = []
        for text, row in zip(texts, rows, strict=True):
            ids: list[int] = row.ids if text else []
            found.append(ids if controls.isdisjoint(ids) else self._without_controls(text, ids, after))
        return found

    def whole_ids(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of a text read by itself, with what the folder's own post-processor puts around it ([CLS], [SEP]).

        `limit` cuts the text, not what is put around it.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        if limit is not None:
            encoding.truncate(max(0, limit - self._backend.num_special_tokens_to_add(False)))
        ids: list[int] = self._backend.post_process(encoding).ids
        return ids

    def _backend_after(self, after: Before) -> Backend:
        return self._backend if after == "nothing" or (after == "control" and self._prefix == "always") else self._bare

    def _without_controls(self, text: str, ids: list[int], after: Before) -> list[int]:
        """Ids of a text for which the vocabulary gave control tokens among `ids`."""
        # A unigram or word-level vocabulary finds a control token's name by itself: cut the name, so that it cannot.
        for name, i in self.controls.items():
            if i in ids and (at := text.find(name)) >= 0:
                return self.ids(text[: at + 1], after) + self.ids(text[at + 1 :], "text")
        return ids  # an unknown character; unk is a control token by name only

    def control(self, token: str) -> int:
        """Id of the token called `token`.

        Raises:
            RecipeError: this tokenizer has no such token.
        """
        found = self.controls.get(token)
        if found is None:
            found = self._backend.token_to_id(token)
        if found is None:
            raise RecipeError(f"tokenizer {self.folder}: has no token {token!r}.{nearest(token, self.controls)}")
        return found

    def _split_marks(self, text: str, extra: tuple[str, ...] = ()) -> tuple[str | int, ...]:
        """A template's own text, cut at its control tokens: texts and ids in turn.

        `extra` names tokens that count here although the folder does not flag them (Baichuan2's <reserved_106>).
        """
        names = sorted({*self.controls, *extra}, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        known = set(names)
        return tuple(self.control(piece) if piece in known else piece for piece in pieces if piece)

    def strips(self, control: int) -> tuple[bool, bool]:
        """Whether a control token swallows white space before and after it (Phi-3's <|end|> does the latter)."""
        return self._strips.get(control, (False, False))

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ids; `skip_special` leaves out what the folder flags as special (not <think>, <tool_call>)."""
        kept = [i for i in ids if not (skip_special and i in self._special)]
        text: str = self._backend.decode(kept, skip_special_tokens=False)
        return text

    def token(self, id: int) -> str:
        """The vocabulary's own spelling of one id, "" for an id that no token has."""
        return self._backend.id_to_token(id) or ""

    def to_json(self) -> str:
        """The text of tokenizer.json, for libraries that read the vocabulary themselves."""
        text: str = self._backend.to_str()
        return text

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of all control tokens."""
        return self._control_ids

    def __len__(self) -> int:
        size: int = self._backend.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def bos_id(self) -> int | None:
        return None if self.bos_token is None else self.control(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        return None if self.eos_token is None else self.control(self.eos_token)

    @property
    def pad_id(self) -> int | None:
        return None if self.pad_token is None else self.control(self.pad_token)

    @cached_property
    def vocab_hash(self) -> str:
        """sha256 over every token with its id: the same for two folders that give one id the same meaning."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        digest = hashlib.sha256()
        for token, i in sorted(vocabulary.items(), key=lambda pair: pair[1]):
            digest.update(f"{i}\t{token}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        unknown = None if self.unk_token is None else self._backend.token_to_id(self.unk_token)
        return frozenset(self.controls.values()) - {unknown}

    @cached_property
    def _prefix(self) -> Literal["always", "first", "never"]:
        """Where the tokenizer puts its "▁": before each text between control tokens, before the row, or nowhere."""
        parts = [part for part in _flat(self._state) if part.get("type") in ("Prepend", "Metaspace", "ByteLevel")]
        if any(part["type"] == "Prepend" for part in parts):
            return "always"
        schemes = [part.get("prepend_scheme", "always") for part in parts if part["type"] == "Metaspace"]
        schemes += ["always" for part in parts if part["type"] == "ByteLevel" and part.get("add_prefix_space")]
        return "always" if "always" in schemes else "first" if "first" in schemes else "never"

    @cached_property
    def _bare(self) -> Backend:
        """The same tokenizer without the "▁" before a text."""
        if self._prefix == "never":
            return self._backend
        state = self._state
        steps = [("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")]
        bare = {kind: _without_prefix(state[kind], several) for kind, several in steps}
        backend = Backend.from_str(json.dumps({**json.loads(self._backend.to_str()), **bare}, ensure_ascii=False))
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _state(self) -> dict[str, Any]:
        """The normaliser and pre-tokeniser as the file has them, without reading the vocabulary again."""
        kinds = {"normalizer": self._backend.normalizer, "pre_tokenizer": self._backend.pre_tokenizer}
        return {kind: json.loads(part.__getstate__()) if part is not None else None for kind, part in kinds.items()}


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read a folder's tokenizer, or the folder of a tokenizer.json.

    A folder that holds only a SentencePiece `tokenizer.model` is converted once and the result cached.

    Raises:
        RecipeError: the folder or its files are missing or cannot be read; the message names them.
    """
    folder = Path(folder)
    if folder.is_file() and folder.name == "tokenizer.json":
        folder = folder.parent
    if not folder.is_dir():
        raise RecipeError(f"tokenizer: {str(folder)!r} is not a folder")
    path = folder / "tokenizer.json"
    if not path.exists():
        from llmforge.data.tokenizer_conversion import convert

        path = convert(folder)
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for a file it cannot read
        raise RecipeError(f"tokenizer: {path} cannot be read: {error}") from None
    config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    for name in ("chat_template.jinja", "chat_template.json"):
        if (own := folder / name).exists():
            text = own.read_text(encoding="utf-8")
            config["chat_template"] = text if name.endswith("jinja") else json.loads(text).get("chat_template")
            break
    ends = _json(folder / "generation_config.json").get(
        "eos_token_id", _json(folder / "config.json").get("eos_token_id")
    )
    stops = [ends] if isinstance(ends, int) else list(ends or ())
    return Tokenizer(backend, config, folder, stops)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise RecipeError(f"tokenizer: {path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"tokenizer: {path} holds {type(value).__name__}, expected an object")
    return value


def _name(token: Any) -> str | None:
    """A special token's text; configs write it as a string or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _template_text(value: Any) -> str | None:
    """The default chat template of a config, which is a string or a list of {name, template}."""
    if isinstance(value, list):
        by_name = {entry["name"]: entry["template"] for entry in value}
        return by_name.get("default")
    return value


def _flat(state: Any) -> list[dict[str, Any]]:
    """Every step of nested normaliser and pre-tokeniser sequences."""
    if isinstance(state, list):
        return [step for part in state for step in _flat(part)]
    if not isinstance(state, dict):
        return []
    return [state, *(step for part in state.values() for step in _flat(part))]


def _without_prefix(step: dict[str, Any] | None, several: str) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser that adds nothing before a text."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        inner = [kept for part in step[several] if (kept := _without_prefix(part, several)) is not None]
        return {**step, several: inner} if inner else None
    if step["type"] == "Metaspace":
        return {
            **step,
            "prepend_scheme": "never",
            **({"add_prefix_space": False} if "add_prefix_space" in step else {}),
        }
    return {**step, "add_prefix_space": False} if step["type"] == "ByteLevel" else step
